#include "engine/model/weights.hpp"

#include "engine/base/check.hpp"
#include "engine/model/finite.hpp"
#include "engine/model/tensor_check.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/tensor_text.hpp"
#include "engine/model/tensor_views.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
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

content_hash hash_of_tensor(const tensor_view& tensor) {
  return tensor.hash ? *tensor.hash : hash_bytes(tensor.bytes);
}

} // namespace

/// The steps of `model_weights::load` and `load_over`, with what they share.
class weight_loader {
public:
  /// @param base  Where tensors come from that `source` does not hold; null if it must hold all.
  weight_loader(const model_config& config, const model_weights* base, const tensor_source& source,
                kernels::arithmetic how, const load_options& options)
    : base_(base), source_(source), options_(options), plan_(plan_tensors(config)) {
    out_.config_ = config;
    out_.arithmetic_ = how;
    out_.layers_.resize(config.layers);
    for (std::size_t i = 0; i < config.layers; ++i)
      if (config.is_sparse(i))
        out_.layers_[i].experts.resize(config.experts.count);
  }

  result<std::shared_ptr<const model_weights>> load();

private:
  /// One packed matrix and the tensors that share it, in column order.
  struct fused_matrix {
    kernels::packed_matrix* target;
    const kernels::packed_matrix* before; ///< The base's; null without a base.
    std::vector<std::size_t> parts;       ///< In `plan_`.
  };

  using matrix_place = std::pair<kernels::packed_matrix*, std::size_t>; ///< And where it begins.

  template <class Weights>
  static auto& vector_of(Weights& weights, const planned_tensor& tensor);
  template <class Weights>
  static auto* matrix_of(Weights& weights, const planned_tensor& tensor);

  result<void> load_vectors();
  void collect_matrices();
  result<void> lay_out_arena();
  void place_halves(std::size_t layer, std::size_t& total, std::vector<matrix_place>& places);
  result<void> load_halves(std::size_t part);
  result<void> load_embedding();
  result<void> load_tied_head();
  result<void> load_matrix(const fused_matrix& matrix);
  result<void> pack(const fused_matrix& matrix, const tensor_view& view, std::size_t column) const;
  result<void> check_values(const tensor_view& view, std::size_t begin, std::size_t count) const;
  result<void> still_wanted() const;
  void copy_packed(const kernels::packed_matrix& from, const kernels::packed_matrix& to) const;

  /// False for a drafter that takes its target's; else it is the first that is planned.
  bool has_embedding() const { return plan_[0].role == tensor_role::embedding; }

  /// The bytes of a placed matrix, to be filled.
  std::byte* place_of(const kernels::packed_matrix& matrix) const {
    return out_.arena_.data() + (matrix.data - out_.arena_.data());
  }

  model_weights out_;
  const model_weights* base_;
  const tensor_source& source_;
  load_options options_;
  std::vector<planned_tensor> plan_;
  std::vector<tensor_info> infos_;                ///< As `plan_`; hashed when loaded.
  std::vector<std::optional<tensor_view>> views_; ///< As `plan_`; none for what the base has.
  std::vector<fused_matrix> matrices_;
  std::byte* embedding_bytes_ = nullptr;
};

result<std::shared_ptr<const model_weights>> weight_loader::load() {
  const auto names = source_.names();
  if (const auto named =
        check_names(out_.config_, plan_, names, base_ == nullptr, source_.origin({}));
      !named)
    return fail(named);
  auto found = view_tensors(plan_, source_, base_ ? std::optional{base_->tensors()} : std::nullopt);
  if (!found)
    return fail(found);
  infos_ = std::move(found->infos);
  views_ = std::move(found->views);
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
  std::sort(infos_.begin(), infos_.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  out_.tensors_ = std::move(infos_);
  out_.hash_ = epoch_hash_of(out_.tensors_);
  return std::shared_ptr<const model_weights>(new model_weights(std::move(out_)));
}

// -- what there is ------------------------------------------------------------

result<void> weight_loader::check_values(const tensor_view& view, std::size_t begin,
                                         std::size_t count) const {
  if (options_.allow_non_finite)
    return {};
  const bool rounds = out_.arithmetic_ == kernels::arithmetic::bf16 && view.shape.size() == 2;
  return check_finite(view, begin, count, rounds, source_);
}

result<void> weight_loader::still_wanted() const {
  if (options_.stop.stop_requested())
    return fail(errc::cancelled, "the weights are not wanted any more");
  return {};
}

// -- vectors ------------------------------------------------------------------

template <class Weights>
auto& weight_loader::vector_of(Weights& weights, const planned_tensor& tensor) {
  auto& layer = weights.layers_[tensor.layer];
  switch (tensor.role) {
    case tensor_role::final_norm: return weights.final_norm_;
    case tensor_role::input_norm: return layer.input_norm;
    case tensor_role::post_norm: return layer.post_norm;
    case tensor_role::q_norm: return layer.q_norm;
    case tensor_role::k_norm: return layer.k_norm;
    case tensor_role::choice_bias: return layer.choice_bias;
    case tensor_role::q_a_norm: return layer.q_a_norm;
    case tensor_role::kv_a_norm: return layer.kv_a_norm;
    case tensor_role::embed_norm: return weights.draft_.embed_norm;
    case tensor_role::hidden_norm: return weights.draft_.hidden_norm;
    default: return layer.qkv_bias; // The plan lists q, k and v in this order.
  }
}

result<void> weight_loader::load_vectors() {
  for (std::size_t i = 0; i < plan_.size(); ++i) {
    const auto& tensor = plan_[i];
    if (tensor.shape.size() != 1)
      continue;
    if (auto wanted = still_wanted(); !wanted)
      return wanted;
    auto& target = vector_of(out_, tensor);
    if (!views_[i]) {
      const auto from = std::span(vector_of(*base_, tensor)).subspan(target.size());
      target.insert(target.end(), from.begin(), from.begin() + std::ptrdiff_t(tensor.shape[0]));
      continue;
    }
    const auto& view = *views_[i];
    if (const auto finite = check_values(view, 0, tensor.shape[0]); !finite)
      return fail(finite);
    for (std::size_t at = 0; at < tensor.shape[0]; ++at)
      target.push_back(element_at(view.bytes, view.type, at));
    infos_[i].hash = hash_of_tensor(view);
  }
  return {};
}

// -- matrices -----------------------------------------------------------------

template <class Weights>
auto* weight_loader::matrix_of(Weights& weights, const planned_tensor& tensor) {
  auto& layer = weights.layers_[tensor.layer];
  switch (tensor.role) {
    case tensor_role::q:
    case tensor_role::q_a:
    case tensor_role::kv_a:
    case tensor_role::k:
    case tensor_role::v: return &layer.qkv;
    case tensor_role::o: return &layer.o;
    case tensor_role::gate:
    case tensor_role::up: return &layer.gate_up;
    case tensor_role::down: return &layer.down;
    case tensor_role::q_b: return &layer.q_b;
    case tensor_role::kv_b: return &layer.absorb; // and `expand`
    case tensor_role::router: return &layer.router;
    case tensor_role::shared_gate:
    case tensor_role::shared_up: return &layer.shared_gate_up;
    case tensor_role::shared_down: return &layer.shared_down;
    case tensor_role::expert_gate:
    case tensor_role::expert_up: return &layer.experts[tensor.expert].gate_up;
    case tensor_role::expert_down: return &layer.experts[tensor.expert].down;
    case tensor_role::lm_head: return &weights.lm_head_;
    case tensor_role::fuse: return &weights.draft_.fuse;
    default: return decltype(&layer.qkv){nullptr};
  }
}

void weight_loader::collect_matrices() {
  std::map<const kernels::packed_matrix*, std::size_t> known;
  for (std::size_t i = 0; i < plan_.size(); ++i) {
    kernels::packed_matrix* const target = matrix_of(out_, plan_[i]);
    if (target == nullptr)
      continue;
    const auto [at, fresh] = known.try_emplace(target, matrices_.size());
    if (fresh)
      matrices_.push_back({target, base_ != nullptr ? matrix_of(*base_, plan_[i]) : nullptr, {}});
    matrices_[at->second].parts.push_back(i);
  }
}

/// The projection from the latent becomes two matrices of another shape: `absorb`, which was placed
/// last and as it is stored, and `expand` behind it.
void weight_loader::place_halves(std::size_t layer, std::size_t& total,
                                 std::vector<matrix_place>& places) {
  const auto& latent = out_.config_.latent;
  const std::size_t heads = out_.config_.heads;
  auto& absorb = out_.layers_[layer].absorb;
  auto& expand = out_.layers_[layer].expand;
  absorb.n = heads * latent.rank;
  absorb.k = latent.nope;
  expand = {nullptr, heads * latent.value, latent.rank, absorb.type};
  total = places.back().second + kernels::packed_bytes(absorb.type, absorb.n, absorb.k);
  places.emplace_back(&expand, total);
  total += kernels::packed_bytes(expand.type, expand.n, expand.k);
}

/// Gives every matrix its shape, its type and its place, and the embedding its place.
result<void> weight_loader::lay_out_arena() {
  const auto packed_type = [&](const std::vector<std::size_t>& parts) {
    const bool exact = std::all_of(parts.begin(), parts.end(), [&](std::size_t i) {
      return infos_[i].type == kernels::dtype::bf16;
    });
    const bool rounded = out_.arithmetic_ == kernels::arithmetic::bf16
                         && plan_[parts.front()].role != tensor_role::router;
    return exact || rounded ? kernels::dtype::bf16 : kernels::dtype::f32;
  };
  std::size_t total = 0;
  std::vector<matrix_place> places;
  const auto place = [&](kernels::packed_matrix* matrix, const std::vector<std::size_t>& parts) {
    matrix->k = infos_[parts.front()].shape[1];
    matrix->n = 0;
    for (const std::size_t i : parts)
      matrix->n += infos_[i].shape[0];
    matrix->type = packed_type(parts);
    places.emplace_back(matrix, total);
    total += kernels::packed_bytes(matrix->type, matrix->n, matrix->k);
  };
  for (const auto& matrix : matrices_) {
    place(matrix.target, matrix.parts);
    if (plan_[matrix.parts.front()].role == tensor_role::kv_b)
      place_halves(plan_[matrix.parts.front()].layer, total, places);
  }
  if (out_.config_.tie_embeddings)
    place(&out_.lm_head_, {0});
  const std::size_t embedding_at = total;
  if (has_embedding())
    total += bytes_of(infos_[0]);

  std::string layout;
  for (const auto& [matrix, at] : places)
    layout += std::to_string(at) + " " + std::to_string(matrix->n) + " " + std::to_string(matrix->k)
              + " " + std::string(name_of(matrix->type)) + "\n";
  auto reserved = weight_arena::make(total, hash_of(std::span<const char>(layout)));
  if (!reserved)
    return fail(reserved);
  out_.arena_ = std::move(*reserved);
  std::byte* const begin = out_.arena_.data();
  for (const auto& [matrix, at] : places)
    matrix->data = begin + at;
  embedding_bytes_ = begin + embedding_at;
  return {};
}

void weight_loader::copy_packed(const kernels::packed_matrix& from,
                                const kernels::packed_matrix& to) const {
  ROLLCAST_CHECK(from.n == to.n && from.k == to.k && from.type == to.type);
  std::memcpy(place_of(to), from.data, kernels::packed_bytes(to.type, to.n, to.k));
}

/// Copies the embedding row-major, and packs it as the head where they are tied.
result<void> weight_loader::load_embedding() {
  if (!has_embedding())
    return {};
  if (auto wanted = still_wanted(); !wanted)
    return wanted;
  const auto& view = views_[0];
  const auto bytes = view ? view->bytes : base_->embedding_.bytes;
  if (view) {
    if (auto finite = check_values(*view, 0, view->shape[0] * view->shape[1]); !finite)
      return finite;
    infos_[0].hash = hash_of_tensor(*view);
  }
  std::memcpy(embedding_bytes_, bytes.data(), bytes.size());
  out_.embedding_ = {
    infos_[0].name, infos_[0].type, infos_[0].shape, {embedding_bytes_, bytes.size()}};
  if (view)
    source_.release(*view);
  return out_.config_.tie_embeddings ? load_tied_head() : result<void>{};
}

result<void> weight_loader::load_tied_head() {
  const auto& embedding = out_.embedding_;
  if (source_.contains("lm_head.weight")) {
    const auto head = source_.tensor("lm_head.weight");
    if (!head)
      return fail(head);
    if (head->type != embedding.type || head->shape != embedding.shape
        || std::memcmp(head->bytes.data(), embedding.bytes.data(), embedding.bytes.size()) != 0)
      return fail(errc::bad_checkpoint,
                  source_.origin(head->name)
                    + ": tensor lm_head.weight differs from model.embed_tokens.weight although "
                      "tie_word_embeddings is true; set it false or remove the tensor");
    source_.release(*head);
  }
  const auto& head = out_.lm_head_;
  if (!views_[0])
    copy_packed(base_->lm_head_, head);
  else
    kernels::pack_weights(embedding_bytes_, embedding.type, head.n, head.k, 0, place_of(head),
                          head.type, head.n);
  return {};
}

/// Cuts a projection from the latent ([heads * (nope + value), rank]) into its heads' halves.
result<void> weight_loader::load_halves(std::size_t part) {
  const auto& latent = out_.config_.latent;
  const std::size_t layer = plan_[part].layer;
  const auto& absorb = out_.layers_[layer].absorb;
  const auto& expand = out_.layers_[layer].expand;
  if (!views_[part]) {
    copy_packed(base_->layers_[layer].absorb, absorb);
    copy_packed(base_->layers_[layer].expand, expand);
    return {};
  }
  const auto& view = *views_[part];
  if (auto finite = check_values(view, 0, view.shape[0] * view.shape[1]); !finite)
    return finite;
  infos_[part].hash = hash_of_tensor(view);
  const std::size_t size = kernels::size_of(view.type);
  std::vector<std::byte> turned(latent.rank * latent.nope * size);
  for (std::size_t head = 0; head < out_.config_.heads; ++head) {
    const std::byte* const from =
      view.bytes.data() + head * (latent.nope + latent.value) * latent.rank * size;
    for (std::size_t i = 0; i < latent.nope; ++i)
      for (std::size_t c = 0; c < latent.rank; ++c)
        std::memcpy(&turned[(c * latent.nope + i) * size], from + (i * latent.rank + c) * size,
                    size);
    kernels::pack_weights(turned.data(), view.type, latent.rank, latent.nope, head * latent.rank,
                          place_of(absorb), absorb.type, absorb.n);
    kernels::pack_weights(from + latent.nope * latent.rank * size, view.type, latent.value,
                          latent.rank, head * latent.value, place_of(expand), expand.type,
                          expand.n);
  }
  source_.release(view);
  return {};
}

result<void> weight_loader::load_matrix(const fused_matrix& matrix) {
  if (auto wanted = still_wanted(); !wanted)
    return wanted;
  if (plan_[matrix.parts.front()].role == tensor_role::kv_b)
    return load_halves(matrix.parts.front());
  const auto kept = [&](std::size_t i) { return !views_[i]; };
  // Parts that stay are columns among those that do not, so all is copied, and theirs replaced.
  if (std::any_of(matrix.parts.begin(), matrix.parts.end(), kept))
    copy_packed(*matrix.before, *matrix.target);
  std::size_t column = 0;
  for (const std::size_t i : matrix.parts) {
    if (views_[i]) {
      infos_[i].hash = hash_of_tensor(*views_[i]);
      if (const auto packed = pack(matrix, *views_[i], column); !packed)
        return fail(packed);
      source_.release(*views_[i]);
    }
    column += infos_[i].shape[0];
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
    if (auto wanted = still_wanted(); !wanted)
      return wanted;
    const std::size_t rows = std::min(run, view.shape[0] - row);
    if (const auto finite = check_values(view, row * target.k, rows * target.k); !finite)
      return fail(finite);
    kernels::pack_weights(view.bytes.data() + row * row_bytes, view.type, rows, target.k,
                          column + row, place_of(target), target.type, target.n);
  }
  return {};
}

result<std::shared_ptr<const model_weights>> model_weights::load(const model_config& config,
                                                                 const tensor_source& source,
                                                                 kernels::arithmetic how,
                                                                 const load_options& options) {
  return weight_loader(config, nullptr, source, how, options).load();
}

result<std::shared_ptr<const model_weights>> model_weights::load_over(const model_weights& base,
                                                                      const tensor_source& changes,
                                                                      const load_options& options) {
  return weight_loader(base.config_, &base, changes, base.arithmetic_, options).load();
}

} // namespace rollcast
