#include "engine/backend/cuda_backend.hpp"

#include "engine/backend/cuda_error.hpp"
#include "engine/backend/cuda_parts.hpp"
#include "engine/backend/cuda_pass.hpp"
#include "engine/base/check.hpp"
#include "kernels/cuda/accept.hpp"
#include "kernels/cuda/rows.hpp"
#include "kernels/cuda/sampling.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace rollcast {

namespace gpu = kernels::cuda;

namespace {

/// The transformer over the kernels of kernels/cuda. A step is: one copy or a few of what the rows
/// are, one graph or some launches, a sampling kernel, one copy back, and one wait.
class cuda_backend final : public backend {
public:
  cuda_backend(const model_config& config, const numerics_profile& profile,
               const cuda_backend_options& options, cuda_parts parts)
    : config_(config), profile_(profile), options_(options), p_(std::move(parts)) {}
  ~cuda_backend() override { static_cast<void>(p_.stream.synchronize()); }

  const device_shape& shape() const noexcept override { return p_.shape; }
  const numerics_profile& numerics() const noexcept override { return profile_; }
  std::span<const token_id> eos_token_ids() const noexcept override {
    return config_.eos_token_ids;
  }
  std::shared_ptr<const device_weights> weights() const noexcept override { return p_.weights; }
  result<std::shared_ptr<const device_weights>>
  prepare_weights(const tensor_source& tensors, const std::shared_ptr<const device_weights>& over,
                  const prepare_options& options) const override;
  void use_weights(std::shared_ptr<const device_weights> weights) override;
  void forward(const forward_rows& rows) override;
  std::span<const float> logits() override {
    return fetch(p_.buffers.logits, logit_count_ * config_.vocabulary, logits_);
  }
  void sample(std::span<const kernels::sample_params> how,
              std::span<kernels::sampled_token> out) override {
    choose(how, nullptr, out, nullptr);
  }
  void sample_drafts(std::span<const kernels::sample_params> how, const drafted_rows& drafts,
                     std::span<kernels::sampled_token> out,
                     const accepted_rows& accepted) override {
    choose(how, &drafts, out, &accepted);
  }
  void score(std::span<const float> temperatures, std::span<const token_id> tokens,
             std::span<float> out) override;
  void export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<std::byte> image) const override;
  void import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<const std::byte> image) override;

private:
  gpu::stream_handle stream() const noexcept { return p_.stream.handle(); }
  cuda_pass_shape plan(const forward_rows& rows);
  void stage(const forward_rows& rows, const cuda_pass_shape& shape);
  void stage_tables(const forward_rows& rows, std::byte* stage, std::size_t& table);
  void choose(std::span<const kernels::sample_params> how, const drafted_rows* drafts,
              std::span<kernels::sampled_token> out, const accepted_rows* accepted);
  void stage_banned(std::span<const kernels::sample_params> how, kernels::sample_params* staged);
  std::span<const float> fetch(const float* from, std::size_t count, std::vector<float>& into);
  /// Where what lies at `at` in the device's step memory is staged.
  template <class T>
  T* staged(std::byte* stage, T* at) const noexcept {
    return reinterpret_cast<T*>(stage + (reinterpret_cast<std::byte*>(at) - p_.buffers.step()));
  }
  /// Where what lies at `at` in the device's memory of answers is pinned.
  template <class T>
  T* answer(T* at) const noexcept {
    return reinterpret_cast<T*>(p_.answers.data()
                                + (reinterpret_cast<std::byte*>(at) - p_.buffers.answers()));
  }
  /// Copies [begin, end) of the answers to the device, or back, which waits.
  template <class T, class U>
  void send_answers(T* begin, U* end) const {
    must(gpu::copy_async(begin, answer(begin), bytes_between(begin, end), stream()));
  }
  template <class T, class U>
  void fetch_answers(T* begin, U* end) const {
    must(gpu::copy_async(answer(begin), begin, bytes_between(begin, end), stream()));
    must(p_.stream.synchronize());
  }
  static std::size_t bytes_between(const void* begin, const void* end) noexcept {
    return static_cast<std::size_t>(static_cast<const std::byte*>(end)
                                    - static_cast<const std::byte*>(begin));
  }

  const model_config config_;
  numerics_profile profile_;
  cuda_backend_options options_;
  cuda_parts p_;
  cuda_graphs graphs_;
  std::uint64_t serial_ = 0; ///< Of the weights.
  std::size_t turn_ = 0;     ///< Of `stages`.
  std::size_t logit_count_ = 0;
  std::vector<gpu::attention_item> items_;
  gpu::device_buffer banned_; ///< Token ids, grown when a step needs more.
  gpu::pinned_buffer banned_staged_;
  std::vector<float> logits_;
};

// -- weights ------------------------------------------------------------------

const cuda_weights* ours(const std::shared_ptr<const device_weights>& weights) {
  const auto* const here = dynamic_cast<const cuda_weights*>(weights.get());
  ROLLCAST_CHECK(here != nullptr);
  return here;
}

result<std::shared_ptr<const device_weights>>
cuda_backend::prepare_weights(const tensor_source& tensors,
                              const std::shared_ptr<const device_weights>& over,
                              const prepare_options& options) const {
  return load_cuda_weights(p_.device, config_, tensors, over ? ours(over) : nullptr, options);
}

void cuda_backend::use_weights(std::shared_ptr<const device_weights> weights) {
  auto taken = std::dynamic_pointer_cast<const cuda_weights>(std::move(weights));
  ROLLCAST_CHECK(taken && taken->layers().size() == config_.layers);
  must(gpu::use_device(p_.device));
  must(p_.stream.synchronize()); // nobody computes with those that may be freed here
  p_.weights = std::move(taken);
  ++serial_;
}

// -- a pass -------------------------------------------------------------------

cuda_pass_shape cuda_backend::plan(const forward_rows& rows) {
  const auto planned = gpu::plan_attention(rows.sequences, config_.heads / config_.kv_heads,
                                           p_.sizes.attention.partial_rows, items_);
  ROLLCAST_CHECK(items_.size() <= p_.sizes.attention.items
                 && planned.partial_rows <= p_.sizes.attention.partial_rows
                 && planned.groups <= p_.sizes.attention.groups);
  cuda_pass_shape shape;
  shape.rows = static_cast<std::uint32_t>(rows.tokens.size());
  shape.logit_rows = static_cast<std::uint32_t>(rows.logit_rows.size());
  shape.items = static_cast<std::uint32_t>(items_.size());
  shape.copies = !rows.copies.empty();
  if (shape.rows > options_.graph_rows_max)
    return shape;
  shape.rows = padded_rows(shape.rows);
  shape.logit_rows = padded_rows(shape.logit_rows);
  shape.items =
    std::min(std::bit_ceil(shape.items), static_cast<std::uint32_t>(p_.sizes.attention.items));
  return shape;
}

/// Writes the block tables of all sequences one behind the other, and the sequences with where
/// their tables will be on the device.
void cuda_backend::stage_tables(const forward_rows& rows, std::byte* stage, std::size_t& table) {
  const auto& b = p_.buffers;
  auto* const sequences = staged(stage, b.sequences);
  auto* const tables = staged(stage, b.tables);
  for (std::size_t i = 0; i < rows.sequences.size(); ++i) {
    const auto& from = rows.sequences[i];
    const std::size_t blocks =
      (std::size_t{from.position} + from.rows + p_.shape.block_tokens - 1) / p_.shape.block_tokens;
    std::copy_n(from.blocks, blocks, tables + table);
    sequences[i] = from;
    sequences[i].blocks = b.tables + table;
    table += blocks;
  }
}

/// Writes what the rows are into a staging buffer and queues its copies to the device. Padded rows
/// have a token, position 0, and no block that their K and V would go to; attention has no item
/// with them, and nobody asks for what becomes of them.
void cuda_backend::stage(const forward_rows& rows, const cuda_pass_shape& shape) {
  const auto& b = p_.buffers;
  auto& s = p_.stages[turn_ = 1 - turn_];
  if (s.used)
    must(s.sent->synchronize());
  std::byte* const to = s.memory.data();
  *staged(to, b.counts) = {static_cast<std::uint32_t>(items_.size()),
                           static_cast<std::uint32_t>(rows.copies.size())};
  const std::size_t count = rows.tokens.size();
  std::copy(rows.tokens.begin(), rows.tokens.end(), staged(to, b.tokens));
  // The row behind the vocabulary's is NaN: poison that must not reach any other row.
  const auto padding = options_.poison ? static_cast<token_id>(config_.vocabulary) : 0;
  std::fill_n(staged(to, b.tokens) + count, shape.rows - count, padding);
  std::copy(rows.places.begin(), rows.places.end(), staged(to, b.places));
  std::fill_n(staged(to, b.places) + count, shape.rows - count,
              kernels::row_place{0, gpu::no_block});
  std::copy(rows.logit_rows.begin(), rows.logit_rows.end(), staged(to, b.logit_index));
  std::fill_n(staged(to, b.logit_index) + rows.logit_rows.size(),
              shape.logit_rows - rows.logit_rows.size(), shape.rows - 1);
  std::size_t table = 0;
  stage_tables(rows, to, table);
  std::copy(rows.copies.begin(), rows.copies.end(), staged(to, b.copies));
  std::copy(items_.begin(), items_.end(), staged(to, b.items));
  if (options_.poison)
    must(gpu::fill_async(b.step(), 0xff, b.step_bytes(), stream()));
  const auto send = [&]<class T>(T* begin, std::size_t elements, std::byte* first) {
    const auto bytes =
      static_cast<std::size_t>(reinterpret_cast<std::byte*>(begin + elements) - first);
    must(gpu::copy_async(first, staged(to, first), bytes, stream()));
  };
  // Small and always there: all up to the sequences in one copy.
  send(b.sequences, rows.sequences.size(), b.step());
  if (!rows.copies.empty())
    send(b.copies, rows.copies.size(), reinterpret_cast<std::byte*>(b.copies));
  send(b.items, items_.size(), reinterpret_cast<std::byte*>(b.items));
  send(b.tables, table, reinterpret_cast<std::byte*>(b.tables));
  must(s.sent->record(stream()));
  s.used = true;
}

void cuda_backend::forward(const forward_rows& rows) {
  const std::size_t count = rows.tokens.size();
  ROLLCAST_CHECK(count > 0 && count <= p_.shape.rows_max && rows.places.size() == count);
  ROLLCAST_CHECK(rows.logit_rows.size() <= p_.shape.logit_rows_max);
  ROLLCAST_CHECK(rows.sequences.size() <= count && rows.copies.size() <= p_.sizes.rows);
  must(gpu::use_device(p_.device));
  const auto shape = plan(rows);
  if (options_.poison)
    must(gpu::fill_async(p_.buffers.scratch(), 0xff, p_.buffers.scratch_bytes(), stream()));
  stage(rows, shape);
  const cuda_model model{config_, *p_.weights, p_.buffers, p_.kv, p_.products.get()};
  logit_count_ = rows.logit_rows.size();
  must(shape.rows <= options_.graph_rows_max ? graphs_.run(model, shape, serial_, stream())
                                             : run_pass(model, shape, stream()));
}

std::span<const float> cuda_backend::fetch(const float* from, std::size_t count,
                                           std::vector<float>& into) {
  must(gpu::use_device(p_.device));
  into.resize(count);
  if (count > 0)
    must(gpu::copy_async(into.data(), from, count * sizeof(float), stream()));
  must(p_.stream.synchronize());
  return into;
}

// -- what follows a pass ------------------------------------------------------

/// Sends banned ids along and has the parameters point at them where they will be.
void cuda_backend::stage_banned(std::span<const kernels::sample_params> how,
                                kernels::sample_params* staged) {
  std::size_t total = 0;
  for (const auto& row : how)
    total += row.banned_count;
  if (total == 0)
    return;
  const std::size_t bytes = total * sizeof(std::int32_t);
  if (bytes > banned_.size()) { // nothing reads the old ones: each step ends with a wait
    banned_ = must(gpu::device_buffer::allocate(std::bit_ceil(bytes)));
    banned_staged_ = must(gpu::pinned_buffer::allocate(std::bit_ceil(bytes)));
  }
  auto* to = banned_staged_.as<std::int32_t>();
  const auto* at = banned_.as<std::int32_t>();
  for (std::size_t i = 0; i < how.size(); ++i) {
    to = std::copy_n(how[i].banned, how[i].banned_count, to);
    staged[i].banned = at;
    at += how[i].banned_count;
  }
  must(gpu::copy_async(banned_.data(), banned_staged_.data(), bytes, stream()));
}

/// Chooses tokens, and follows the drafts if there are any: one copy there, one back, one wait.
void cuda_backend::choose(std::span<const kernels::sample_params> how, const drafted_rows* drafts,
                          std::span<kernels::sampled_token> out, const accepted_rows* accepted) {
  ROLLCAST_CHECK(how.size() == logit_count_ && out.size() == logit_count_);
  if (how.empty())
    return;
  must(gpu::use_device(p_.device));
  const auto& b = p_.buffers;
  auto* const params = answer(b.how);
  std::ranges::copy(how, params);
  stage_banned(how, params);
  if (drafts != nullptr) {
    ROLLCAST_CHECK(drafts->tokens.size() == how.size() && drafts->parents.size() == how.size());
    ROLLCAST_CHECK(drafts->trees.size() <= how.size());
    std::ranges::copy(drafts->trees, answer(b.draft_trees));
    std::ranges::copy(drafts->tokens, answer(b.draft_tokens));
    std::ranges::copy(drafts->parents, answer(b.draft_parents));
    send_answers(b.how, b.draft_parents + how.size());
  } else {
    send_answers(b.how, b.how + how.size());
  }
  must(gpu::sample({b.logits, config_.vocabulary, how.size(), config_.vocabulary, b.how, b.chosen},
                   stream()));
  if (drafts != nullptr) {
    must(gpu::accept_drafts({b.draft_trees, drafts->trees.size(), b.draft_tokens, b.draft_parents,
                             b.chosen, b.paths, b.path_nodes},
                            stream()));
    fetch_answers(b.chosen, b.path_nodes + how.size());
    std::copy_n(answer(b.paths), drafts->trees.size(), accepted->paths.begin());
    std::copy_n(answer(b.path_nodes), how.size(), accepted->nodes.begin());
  } else {
    fetch_answers(b.chosen, b.chosen + how.size());
  }
  std::copy_n(answer(b.chosen), out.size(), out.begin());
}

void cuda_backend::score(std::span<const float> temperatures, std::span<const token_id> tokens,
                         std::span<float> out) {
  ROLLCAST_CHECK(tokens.size() == logit_count_ && out.size() == logit_count_
                 && temperatures.size() == logit_count_);
  if (out.empty())
    return;
  must(gpu::use_device(p_.device));
  const auto& b = p_.buffers;
  std::ranges::copy(temperatures, answer(b.temperatures));
  std::ranges::copy(tokens, answer(b.given));
  send_answers(b.temperatures, b.given + out.size());
  must(gpu::score({b.logits, config_.vocabulary, out.size(), config_.vocabulary, b.temperatures,
                   b.given, b.scores},
                  stream()));
  fetch_answers(b.scores, b.scores + out.size());
  std::copy_n(answer(b.scores), out.size(), out.begin());
}

void cuda_backend::export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                             std::span<std::byte> image) const {
  ROLLCAST_CHECK(image.size() == groups * p_.shape.kv_group_bytes);
  must(gpu::use_device(p_.device));
  must(p_.kv.export_image(blocks, groups, image, p_.stream));
}

void cuda_backend::import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                             std::span<const std::byte> image) {
  ROLLCAST_CHECK(image.size() == groups * p_.shape.kv_group_bytes);
  must(gpu::use_device(p_.device));
  must(p_.kv.import_image(blocks, groups, image, p_.stream));
}

} // namespace

result<std::unique_ptr<backend>> make_cuda_backend(const model_config& config,
                                                   const tensor_source& tensors,
                                                   const numerics_profile& profile,
                                                   const cuda_backend_options& options,
                                                   const prepare_options& prepare) {
  if (!profile.gpu)
    return fail(errc::unsupported_numerics, "numerics profile " + std::string{profile.name}
                                              + " is not a GPU's: take "
                                              + std::string{cuda_profile});
  auto parts = make_cuda_parts(config, tensors, profile, options, prepare);
  if (!parts)
    return fail(parts);
  const auto info = gpu::describe_device(options.device);
  if (!info)
    return device_failed(info, "asking what GPU " + std::to_string(options.device) + " is");
  numerics_profile own = profile; // two architectures may differ in the last bit of a product
  own.architecture = info->architecture;
  return std::make_unique<cuda_backend>(config, own, options, std::move(*parts));
}

} // namespace rollcast
