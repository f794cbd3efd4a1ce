#include "engine/model/weights.hpp"

#include "engine/base/check.hpp"
#include "engine/model/finite.hpp"
#include "engine/model/json_reader.hpp"
#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/tensor_text.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace rollcast {

namespace {

using job = std::function<result<void>()>;

/// Runs all jobs on up to `threads` threads. Which thread runs a job decides nothing.
/// @returns the failure of the first job, in the order given, that failed.
result<void> run_jobs(const std::vector<job>& jobs, std::size_t threads) {
  std::vector<result<void>> outcomes(jobs.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < jobs.size(); i = next++)
      outcomes[i] = jobs[i]();
  };
  std::vector<std::thread> helpers;
  try {
    while (helpers.size() + 1 < std::min(threads, jobs.size()))
      helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, this one at least, do all the work.
  }
  work();
  for (auto& helper : helpers)
    helper.join();
  for (const auto& outcome : outcomes) {
    if (!outcome)
      return fail(outcome);
  }
  return {};
}

/// "3 tensors missing: a, b, c" with at most five names.
std::string listing(const std::vector<std::string_view>& names, std::string_view what) {
  constexpr std::size_t named_max = 5;
  std::string out = std::to_string(names.size()) + (names.size() == 1 ? " tensor " : " tensors ")
                    + std::string(what);
  for (std::size_t i = 0; i < std::min(named_max, names.size()); ++i)
    out += (i == 0 ? ": " : ", ") + printable(names[i]);
  return names.size() > named_max ? out + ", ..." : out;
}

} // namespace

/// The steps of `model_weights::load`, with what they share.
class weight_loader {
public:
  weight_loader(const model_config& config, checkpoint&& source, kernels::arithmetic how,
                const load_options& options)
    : source_(std::move(source)), options_(options), plan_(plan_tensors(config)) {
    out_.config_ = config;
    out_.arithmetic_ = how;
    out_.layers_.resize(config.layers);
  }

  result<std::shared_ptr<const model_weights>> load();

private:
  /// One packed matrix and the tensors that share it, in column order.
  struct fused_matrix {
    kernels::packed_matrix* target;
    std::vector<std::size_t> parts; ///< In `plan_`.
  };

  result<void> check_names() const;
  result<void> view_tensors();
  result<void> load_vectors();
  void collect_matrices();
  result<void> lay_out_arena();
  result<void> load_embedding();
  result<void> load_matrix(const fused_matrix& matrix);
  result<void> pack(const fused_matrix& matrix, const tensor_view& view, std::size_t column) const;
  result<void> check_finite(const tensor_view& view, std::size_t begin, std::size_t count) const;
  void hash_tensor(std::size_t at) { digests_[at] = hash_bytes(views_[at].bytes); }
  content_hash combined_hash() const;

  /// The bytes of a placed matrix, to be filled.
  std::byte* place_of(const kernels::packed_matrix& matrix) const {
    return out_.arena_.data() + (matrix.data - out_.arena_.data());
  }

  model_weights out_;
  checkpoint source_;
  load_options options_;
  std::vector<planned_tensor> plan_;
  std::vector<tensor_view> views_;    ///< As `plan_`.
  std::vector<content_hash> digests_; ///< As `plan_`.
  std::vector<fused_matrix> matrices_;
  std::byte* embedding_bytes_ = nullptr;
};

result<std::shared_ptr<const model_weights>> weight_loader::load() {
  if (const auto named = check_names(); !named)
    return fail(named);
  if (const auto viewed = view_tensors(); !viewed)
    return fail(viewed);
  if (const auto widened = load_vectors(); !widened)
    return fail(widened);
  collect_matrices();
  if (const auto reserved = lay_out_arena(); !reserved)
    return fail(reserved);
  std::vector<job> jobs;
  jobs.emplace_back([this] { return load_embedding(); }); // First, because it is the longest.
  for (const auto& matrix : matrices_)
    jobs.emplace_back([this, &matrix] { return load_matrix(matrix); });
  if (const auto done = run_jobs(jobs, options_.threads); !done)
    return fail(done);
  out_.hash_ = combined_hash();
  return std::shared_ptr<const model_weights>(new model_weights(std::move(out_)));
}

// -- checks -------------------------------------------------------------------

result<void> weight_loader::check_names() const {
  std::vector<std::string_view> missing;
  std::set<std::string_view> planned;
  for (const auto& tensor : plan_) {
    planned.insert(tensor.name);
    if (!source_.contains(tensor.name))
      missing.push_back(tensor.name);
  }
  std::vector<std::string_view> unknown;
  for (const auto name : source_.names()) {
    if (!planned.contains(name) && !is_known_extra(out_.config_, name))
      unknown.push_back(name);
  }
  if (missing.empty() && unknown.empty())
    return {};
  std::string detail = source_.directory().string() + ": not a "
                       + std::string(class_name(out_.config_.family)) + " of this config.json: ";
  if (!missing.empty())
    detail += listing(missing, "missing");
  if (!unknown.empty())
    detail += (missing.empty() ? "" : "; ") + listing(unknown, "unknown");
  return fail(errc::bad_checkpoint, detail);
}

result<void> weight_loader::view_tensors() {
  for (const auto& planned : plan_) {
    auto view = source_.tensor(planned.name);
    if (!view)
      return fail(view);
    if (view->shape != planned.shape)
      return fail(errc::bad_checkpoint, source_.file_of(planned.name) + ": tensor " + planned.name
                                          + " has shape " + shown(view->shape)
                                          + ", config.json asks for " + shown(planned.shape));
    views_.push_back(std::move(*view));
  }
  digests_.resize(views_.size());
  return {};
}

/// Refuses a non-finite value among elements [begin, begin + count).
result<void> weight_loader::check_finite(const tensor_view& view, std::size_t begin,
                                         std::size_t count) const {
  if (options_.allow_non_finite)
    return {};
  const std::size_t size = kernels::size_of(view.type);
  const bool rounds = out_.arithmetic_ == kernels::arithmetic::bf16 && view.shape.size() == 2;
  const auto bad =
    first_non_finite(view.bytes.subspan(begin * size, count * size), view.type, rounds);
  if (!bad)
    return {};
  const std::size_t at = begin + *bad;
  std::vector<std::size_t> index{at};
  if (view.shape.size() == 2)
    index = {at / view.shape[1], at % view.shape[1]};
  std::array<char, 32> value{};
  std::snprintf(value.data(), value.size(), "%g",
                static_cast<double>(element_at(view.bytes, view.type, at)));
  return fail(errc::bad_checkpoint, source_.file_of(view.name) + ": tensor " + view.name
                                      + shown(index) + " = " + value.data()
                                      + "; weights must be finite"
                                      + (rounds ? " when rounded to bf16" : ""));
}

// -- vectors ------------------------------------------------------------------

result<void> weight_loader::load_vectors() {
  for (std::size_t i = 0; i < plan_.size(); ++i) {
    const auto& tensor = plan_[i];
    if (tensor.shape.size() != 1)
      continue;
    const auto& view = views_[i];
    if (const auto finite = check_finite(view, 0, tensor.shape[0]); !finite)
      return fail(finite);
    auto& layer = out_.layers_[tensor.layer];
    auto& target = [&]() -> std::vector<float>& {
      switch (tensor.role) {
        case tensor_role::final_norm: return out_.final_norm_;
        case tensor_role::input_norm: return layer.input_norm;
        case tensor_role::post_norm: return layer.post_norm;
        case tensor_role::q_norm: return layer.q_norm;
        case tensor_role::k_norm: return layer.k_norm;
        default: return layer.qkv_bias; // The plan lists q, k and v in this order.
      }
    }();
    for (std::size_t at = 0; at < tensor.shape[0]; ++at)
      target.push_back(element_at(view.bytes, view.type, at));
    hash_tensor(i);
  }
  return {};
}

// -- matrices -----------------------------------------------------------------

void weight_loader::collect_matrices() {
  std::map<const kernels::packed_matrix*, std::size_t> known;
  for (std::size_t i = 0; i < plan_.size(); ++i) {
    auto& layer = out_.layers_[plan_[i].layer];
    kernels::packed_matrix* target = nullptr;
    switch (plan_[i].role) {
      case tensor_role::q:
      case tensor_role::k:
      case tensor_role::v: target = &layer.qkv; break;
      case tensor_role::o: target = &layer.o; break;
      case tensor_role::gate:
      case tensor_role::up: target = &layer.gate_up; break;
      case tensor_role::down: target = &layer.down; break;
      case tensor_role::lm_head: target = &out_.lm_head_; break;
      default: continue;
    }
    const auto [at, fresh] = known.try_emplace(target, matrices_.size());
    if (fresh)
      matrices_.push_back({target, {}});
    matrices_[at->second].parts.push_back(i);
  }
}

/// Gives every matrix its shape, its type and its place, and the embedding its place.
result<void> weight_loader::lay_out_arena() {
  const auto packed_type = [&](const std::vector<std::size_t>& parts) {
    const bool exact = std::all_of(parts.begin(), parts.end(), [&](std::size_t i) {
      return views_[i].type == kernels::dtype::bf16;
    });
    return exact || out_.arithmetic_ == kernels::arithmetic::bf16 ? kernels::dtype::bf16
                                                                  : kernels::dtype::f32;
  };
  std::size_t total = 0;
  std::vector<std::pair<kernels::packed_matrix*, std::size_t>> places;
  const auto place = [&](kernels::packed_matrix* matrix, const std::vector<std::size_t>& parts) {
    matrix->k = views_[parts.front()].shape[1];
    matrix->n = 0;
    for (const std::size_t i : parts)
      matrix->n += views_[i].shape[0];
    matrix->type = packed_type(parts);
    places.emplace_back(matrix, total);
    total += kernels::packed_bytes(matrix->type, matrix->n, matrix->k);
  };
  for (const auto& matrix : matrices_)
    place(matrix.target, matrix.parts);
  if (out_.config_.tie_embeddings)
    place(&out_.lm_head_, {0});
  const std::size_t embedding_at = total;
  total += views_[0].bytes.size();

  auto reserved = aligned_buffer::make(total);
  if (!reserved)
    return fail(reserved);
  out_.arena_ = std::move(*reserved);
  std::byte* const begin = out_.arena_.data();
  for (const auto& [matrix, at] : places)
    matrix->data = begin + at;
  embedding_bytes_ = begin + embedding_at;
  return {};
}

/// Copies the embedding row-major, and packs it as the head where they are tied.
result<void> weight_loader::load_embedding() {
  ROLLCAST_CHECK(plan_[0].role == tensor_role::embedding);
  const auto& view = views_[0];
  if (const auto finite = check_finite(view, 0, view.shape[0] * view.shape[1]); !finite)
    return fail(finite);
  hash_tensor(0);
  std::memcpy(embedding_bytes_, view.bytes.data(), view.bytes.size());
  out_.embedding_ = view;
  out_.embedding_.bytes = {embedding_bytes_, view.bytes.size()};
  if (!out_.config_.tie_embeddings) {
    checkpoint::release(view);
    return {};
  }
  if (source_.contains("lm_head.weight")) {
    const auto head = source_.tensor("lm_head.weight");
    if (!head)
      return fail(head);
    if (head->type != view.type || head->shape != view.shape
        || std::memcmp(head->bytes.data(), view.bytes.data(), view.bytes.size()) != 0)
      return fail(errc::bad_checkpoint,
                  source_.file_of(head->name)
                    + ": tensor lm_head.weight differs from model.embed_tokens.weight although "
                      "tie_word_embeddings is true; set it false or remove the tensor");
    checkpoint::release(*head);
  }
  checkpoint::release(view);
  const auto& head = out_.lm_head_;
  kernels::pack_weights(embedding_bytes_, view.type, head.n, head.k, 0, place_of(head), head.type,
                        head.n);
  return {};
}

result<void> weight_loader::load_matrix(const fused_matrix& matrix) {
  std::size_t column = 0;
  for (const std::size_t i : matrix.parts) {
    hash_tensor(i);
    if (const auto packed = pack(matrix, views_[i], column); !packed)
      return fail(packed);
    checkpoint::release(views_[i]);
    column += views_[i].shape[0];
  }
  return {};
}

/// Checks and packs in runs of rows that fit the cache, so that the check costs no memory traffic.
result<void> weight_loader::pack(const fused_matrix& matrix, const tensor_view& view,
                                 std::size_t column) const {
  constexpr std::size_t run_bytes = 256 * 1024;
  const auto& target = *matrix.target;
  const std::size_t row_bytes = target.k * kernels::size_of(view.type);
  const std::size_t run =
    std::max<std::size_t>(kernels::panel_columns,
                          run_bytes / row_bytes / kernels::panel_columns * kernels::panel_columns);
  for (std::size_t row = 0; row < view.shape[0]; row += run) {
    const std::size_t rows = std::min(run, view.shape[0] - row);
    if (const auto finite = check_finite(view, row * target.k, rows * target.k); !finite)
      return fail(finite);
    kernels::pack_weights(view.bytes.data() + row * row_bytes, view.type, rows, target.k,
                          column + row, place_of(target), target.type, target.n);
  }
  return {};
}

content_hash weight_loader::combined_hash() const {
  std::vector<tensor_info> tensors;
  for (std::size_t i = 0; i < plan_.size(); ++i)
    tensors.push_back({plan_[i].name, views_[i].type, views_[i].shape, digests_[i]});
  return epoch_hash_of(tensors);
}

result<std::shared_ptr<const model_weights>> model_weights::load(const model_config& config,
                                                                 checkpoint&& source,
                                                                 kernels::arithmetic how,
                                                                 const load_options& options) {
  return weight_loader(config, std::move(source), how, options).load();
}

} // namespace rollcast
