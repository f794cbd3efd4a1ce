#include "engine/backend/cpu_backend.hpp"

#include "engine/backend/activation_observer.hpp"
#include "engine/backend/cpu_activations.hpp"
#include "engine/backend/cpu_draft_input.hpp"
#include "engine/backend/cpu_experts.hpp"
#include "engine/backend/cpu_kv_rows.hpp"
#include "engine/backend/cpu_latent.hpp"
#include "engine/backend/cpu_ops.hpp"
#include "engine/backend/thread_pool.hpp"
#include "engine/base/check.hpp"
#include "engine/model/footprint.hpp"
#include "kernels/attention.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/gemm.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/rope.hpp"
#include "kernels/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace rollcast {

namespace {

using namespace kernels;

/// Packed weights, as the seam passes them on.
class cpu_weights final : public device_weights {
public:
  explicit cpu_weights(std::shared_ptr<const model_weights> packed) : packed_(std::move(packed)) {}

  content_hash hash() const noexcept override { return packed_->hash(); }
  std::span<const tensor_info> tensors() const noexcept override { return packed_->tensors(); }
  const std::shared_ptr<const model_weights>& packed() const noexcept { return packed_; }

private:
  std::shared_ptr<const model_weights> packed_;
};

/// @pre a CPU device made them.
const cpu_weights& packed_in(const device_weights& weights) noexcept {
  const auto* const ours = dynamic_cast<const cpu_weights*>(&weights.bare());
  ROLLCAST_CHECK(ours != nullptr);
  return *ours;
}

/// The transformer, written once over the CPU kernels. Threads share rows, row tiles, output panels
/// or (sequence, head) items, never a reduction.
class cpu_backend final : public backend {
public:
  cpu_backend(std::shared_ptr<const model_weights> weights, const numerics_profile& profile,
              std::shared_ptr<thread_pool> pool, cpu_activations activations, cpu_experts experts,
              cpu_latent latent, cpu_draft_input input, aligned_buffer kv_cache, device_shape shape)
    : used_(std::make_shared<cpu_weights>(std::move(weights))),
      weights_(packed_in(*used_).packed().get()), config_(weights_->config()), profile_(profile),
      shape_(shape), shared_pool_(std::move(pool)), pool_(*shared_pool_),
      act_(std::move(activations)), experts_(std::move(experts)), latent_(std::move(latent)),
      input_(std::move(input)), kv_cache_(std::move(kv_cache)) {
    rope_table(config_.rope, shape_.positions_max, act_.cos_sin());
    if (const auto bytes = shape_.rows_max * shape_.experts.position_bytes(); bytes != 0)
      expert_ids_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
  }

  const device_shape& shape() const noexcept override { return shape_; }
  const numerics_profile& numerics() const noexcept override { return profile_; }
  std::span<const token_id> eos_token_ids() const noexcept override {
    return config_.eos_token_ids;
  }

  std::shared_ptr<const device_weights> weights() const noexcept override { return used_; }
  result<std::shared_ptr<const device_weights>>
  prepare_weights(const tensor_source& tensors, const std::shared_ptr<const device_weights>& over,
                  const prepare_options& options) const override;
  void use_weights(std::shared_ptr<const device_weights> weights) override;

  void forward(const forward_rows& rows) override;
  std::span<const float> logits() override {
    return {act_.logits(), logit_count_ * config_.vocabulary};
  }
  bool keep_states(const state_wish& which) override;
  std::span<const float> states() override { return {states_.get(), states_kept_}; }
  std::span<const std::byte> experts() override { return {expert_ids_.get(), expert_bytes_}; }
  void borrow(std::shared_ptr<const device_weights> target) override;
  bool observe(activation_observer* by) override {
    observer_ = by;
    return true;
  }
  void sample(std::span<const sample_params> how, std::span<sampled_token> out) override;
  void score(std::span<const float> temperatures, std::span<const token_id> tokens,
             std::span<float> out) override;
  void export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<std::byte> image) const override;
  void import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<const std::byte> image) override;

private:
  kv_layout kv_of(std::size_t layer) const noexcept;
  std::byte* group_at(std::size_t layer, std::span<const std::uint32_t> blocks,
                      std::size_t group) const noexcept;

  void embed(std::span<const token_id> tokens);
  void norm(const float* x, const float* weight, float* y, std::size_t rows);
  packed_rows pack(const float* x, std::size_t rows, std::size_t k);
  void multiply(const packed_matrix& w, const packed_rows& x, float* y, const float* bias,
                bool accumulate);
  void append_kv(const layer_weights& layer, const forward_rows& rows, const kv_layout& kv);
  void attend(const layer_weights& layer, std::size_t index, const forward_rows& rows);
  void feed_forward(const layer_weights& layer, std::size_t index, std::size_t rows);
  void make_logits(std::span<const std::uint32_t> logit_rows);
  void keep_layer(std::size_t index, std::size_t rows);
  void keep_last(std::size_t rows);
  void keep_experts(std::size_t rows);
  const packed_matrix& lm_head() const noexcept {
    return weights_->lm_head().n != 0 ? weights_->lm_head() : lender_->lm_head();
  }

  /// Shows what an operation has left to the observer, if there is one: all there is on the hot
  /// path.
  void show(operation what, std::size_t layer, const float* values, std::size_t columns,
            std::size_t stride) {
    if (observer_ != nullptr) [[unlikely]]
      show_rows(what, layer, values, columns, stride);
  }
  void show_rows(operation what, std::size_t layer, const float* values, std::size_t columns,
                 std::size_t stride);
  void show_qkv(std::size_t layer, const float* q, std::size_t q_stride, const forward_rows& rows);
  void note_positions(const forward_rows& rows);

  std::shared_ptr<const device_weights> used_;
  const model_weights* weights_; ///< Of `used_`.
  const model_config config_;
  numerics_profile profile_;
  device_shape shape_;
  std::shared_ptr<thread_pool> shared_pool_;
  thread_pool& pool_;
  cpu_activations act_;
  cpu_experts experts_;
  cpu_latent latent_;
  cpu_draft_input input_;
  std::shared_ptr<const model_weights> lender_; ///< Of what a drafter's model lacks.
  aligned_buffer kv_cache_;
  state_wish wish_;
  std::unique_ptr<float[]> states_; ///< [rows_max, width]
  std::size_t state_width_ = 0;
  std::size_t states_kept_ = 0;             ///< Elements.
  std::unique_ptr<std::byte[]> expert_ids_; ///< [rows_max] of `shape_.experts`.
  std::size_t expert_bytes_ = 0;            ///< Kept.
  std::uint32_t sparse_ = 0;                ///< Sparse layers of this pass that are done.
  std::size_t items_ = 0;                   ///< Of the attention plan of this pass.
  double item_ns_ = 0;                      ///< Estimated cost of one of them.
  std::size_t logit_count_ = 0;             ///< Rows in the logits buffer.
  activation_observer* observer_ = nullptr;
  // For the observer alone: of the last pass, and a copy of its K and V.
  std::vector<std::uint32_t> positions_;
  std::vector<std::uint32_t> logit_positions_;
  std::vector<float> kv_rows_;
};

// -- weights ------------------------------------------------------------------

result<std::shared_ptr<const device_weights>>
cpu_backend::prepare_weights(const tensor_source& tensors,
                             const std::shared_ptr<const device_weights>& over,
                             const prepare_options& options) const {
  // Another thread may be in `use_weights`: only what never changes is read here.
  const load_options load{options.allow_non_finite, options.threads, options.stop};
  auto packed = over ? model_weights::load_over(*packed_in(*over).packed(), tensors, load)
                     : model_weights::load(config_, tensors, profile_.arithmetic, load);
  if (!packed)
    return fail(packed);
  return std::make_shared<const cpu_weights>(std::move(*packed));
}

void cpu_backend::use_weights(std::shared_ptr<const device_weights> weights) {
  const auto* const packed = packed_in(*weights).packed().get();
  ROLLCAST_CHECK(packed->arithmetic() == profile_.arithmetic
                 && packed->layers().size() == config_.layers
                 && packed->embedding().shape == weights_->embedding().shape);
  used_ = std::move(weights);
  weights_ = packed;
}

// -- what drafters take -------------------------------------------------------

bool cpu_backend::keep_states(const state_wish& which) {
  for (const auto layer : which.layers)
    if (layer >= config_.layers)
      return false;
  wish_ = which;
  state_width_ = (which.layers.size() + (which.last ? 1 : 0)) * config_.hidden;
  states_ = std::make_unique_for_overwrite<float[]>(shape_.rows_max * state_width_);
  states_kept_ = 0;
  return true;
}

/// Copies what a layer has left, if it is wished for.
void cpu_backend::keep_layer(std::size_t index, std::size_t rows) {
  const std::size_t dim = config_.hidden;
  for (std::size_t at = 0; at < wish_.layers.size(); ++at)
    if (wish_.layers[at] == index)
      for (std::size_t row = 0; row < rows; ++row)
        std::memcpy(&states_[row * state_width_ + at * dim], act_.hidden() + row * dim,
                    dim * sizeof(float));
}

void cpu_backend::keep_last(std::size_t rows) {
  const std::size_t dim = config_.hidden;
  const rms_norm_args args{act_.hidden(),
                           weights_->final_norm().data(),
                           &states_[state_width_ - dim],
                           dim,
                           dim,
                           state_width_,
                           config_.rms_eps};
  pool_.run(
    rows, grain_for(0.3 * static_cast<double>(dim)),
    [&](std::size_t begin, std::size_t end, std::size_t) { rms_norm_cpu(args, begin, end); });
}

/// Copies what the router of the sparse layer that was last computed has chosen.
void cpu_backend::keep_experts(std::size_t rows) {
  const auto& layout = shape_.experts;
  const std::size_t layer = std::size_t{layout.per_token} * layout.id_bytes;
  experts_.write_ids(rows, &expert_ids_[sparse_++ * layer], layout.position_bytes(),
                     layout.id_bytes);
}

void cpu_backend::borrow(std::shared_ptr<const device_weights> target) {
  lender_ = packed_in(*target).packed();
  ROLLCAST_CHECK(lender_->arithmetic() == profile_.arithmetic);
}

// -- pieces -------------------------------------------------------------------

kv_layout cpu_backend::kv_of(std::size_t layer) const noexcept {
  kv_layout kv = kv_layout_of(config_, profile_.kv_type, shape_.block_tokens);
  kv.data = kv_cache_.data() + layer * shape_.kv_blocks * kv.block_bytes();
  return kv;
}

void cpu_backend::embed(std::span<const token_id> tokens) {
  const auto& table = weights_->embedding();
  const std::size_t dim = config_.hidden;
  const std::size_t row_bytes = dim * size_of(table.type);
  pool_.run(tokens.size(), grain_for(0.1 * static_cast<double>(dim)),
            [&](std::size_t begin, std::size_t end, std::size_t) {
              for (std::size_t row = begin; row < end; ++row)
                widen_row_cpu(table.bytes.data()
                                + static_cast<std::size_t>(tokens[row]) * row_bytes,
                              table.type, dim, act_.hidden() + row * dim);
            });
}

void cpu_backend::norm(const float* x, const float* weight, float* y, std::size_t rows) {
  const std::size_t dim = config_.hidden;
  const rms_norm_args args{x, weight, y, dim, dim, dim, config_.rms_eps};
  pool_.run(
    rows, grain_for(0.3 * static_cast<double>(dim)),
    [&](std::size_t begin, std::size_t end, std::size_t) { rms_norm_cpu(args, begin, end); });
}

packed_rows cpu_backend::pack(const float* x, std::size_t rows, std::size_t k) {
  return pack_shared(pool_, x, k, rows, k, profile_.arithmetic, act_.packed());
}

void cpu_backend::multiply(const packed_matrix& w, const packed_rows& x, float* y,
                           const float* bias, bool accumulate) {
  multiply_shared(pool_, {w, x, y, w.n, bias, accumulate});
}

// -- what an observer sees ----------------------------------------------------

void cpu_backend::note_positions(const forward_rows& rows) {
  positions_.clear();
  for (const auto& place : rows.places)
    positions_.push_back(place.position);
  logit_positions_.clear();
  for (const auto row : rows.logit_rows)
    logit_positions_.push_back(positions_[row]);
}

void cpu_backend::show_rows(operation what, std::size_t layer, const float* values,
                            std::size_t columns, std::size_t stride) {
  observer_->see({what, static_cast<std::uint32_t>(layer),
                  of_logit_rows(what) ? logit_positions_ : positions_, values, columns, stride});
}

void cpu_backend::show_qkv(std::size_t layer, const float* q, std::size_t q_stride,
                           const forward_rows& rows) {
  const kv_layout kv = kv_of(layer);
  show_rows(operation::q, layer, q, config_.heads * config_.head_dim, q_stride);
  kv_rows_.resize(rows.places.size() * kv.kv_heads * kv.head_dim);
  for (const bool keys : {true, false}) {
    const std::size_t width = kv.kv_heads * (keys ? kv.head_dim : kv.value_dim());
    read_kv_rows(kv, rows.places, keys, kv_rows_.data());
    show_rows(keys ? operation::k : operation::v, layer, kv_rows_.data(), width, width);
  }
}

// -- one layer ----------------------------------------------------------------

/// Rotates q in place and appends K and V.
void cpu_backend::append_kv(const layer_weights& layer, const forward_rows& rows,
                            const kv_layout& kv) {
  const qkv_rope_args rope{act_.qkv(),
                           layer.qkv.n,
                           config_.heads,
                           config_.kv_heads,
                           layer.q_norm.empty() ? nullptr : layer.q_norm.data(),
                           layer.k_norm.empty() ? nullptr : layer.k_norm.data(),
                           config_.rms_eps,
                           act_.cos_sin(),
                           rows.places.data(),
                           kv,
                           config_.rope.head_dim};
  pool_.run(rows.tokens.size(), grain_for(0.6 * static_cast<double>(layer.qkv.n)),
            [&](std::size_t begin, std::size_t end, std::size_t) {
              qkv_rope_append_cpu(rope, begin, end);
            });
}

void cpu_backend::attend(const layer_weights& layer, std::size_t index, const forward_rows& rows) {
  const std::size_t count = rows.tokens.size();
  const bool latent = config_.latent.rank != 0;
  const kv_layout kv = kv_of(index);
  const float* const bias = layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data();
  if (config_.draft.kind == draft_kind::eagle3) {
    multiply(layer.qkv, input_.first_input(pool_, *weights_, act_.hidden(), count), act_.qkv(),
             bias, false);
  } else {
    norm(act_.hidden(), layer.input_norm.data(), act_.normed(), count);
    show(operation::input_norm, index, act_.normed(), config_.hidden, config_.hidden);
    multiply(layer.qkv, pack(act_.normed(), count, config_.hidden), act_.qkv(), bias, false);
  }
  if (latent)
    latent_.project(pool_, layer, act_.qkv(), count, act_.cos_sin(), rows.places.data(), kv);
  else
    append_kv(layer, rows, kv);
  const float* const q = latent ? latent_.queries() : act_.qkv();
  const std::size_t q_stride = latent ? config_.heads * config_.head_dim : layer.qkv.n;
  if (observer_ != nullptr) [[unlikely]]
    show_qkv(index, q, q_stride, rows);
  if (!rows.copies.empty())
    pool_.run(config_.kv_heads, 1, [&](std::size_t begin, std::size_t end, std::size_t) {
      copy_kv_cpu(kv, rows.copies.data(), rows.copies.size(), begin, end);
    });
  const std::size_t width = config_.attended_width();
  const attention_args args{q,
                            q_stride,
                            latent ? latent_.mixed() : act_.attended(),
                            config_.heads * kv.value_dim(),
                            config_.heads,
                            config_.attention_scale(),
                            kv,
                            rows.sequences.data(),
                            latent_.shares()};
  pool_.run(items_, grain_for(item_ns_), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t item = begin; item < end; ++item)
      attention_cpu(args, act_.items()[item]);
  });
  if (latent)
    latent_.expand(pool_, layer, count, act_.attended());
  show(operation::attention, index, act_.attended(), width, width);
  multiply(layer.o, pack(act_.attended(), count, width), act_.hidden(), nullptr, true);
  show(operation::o, index, act_.hidden(), config_.hidden, config_.hidden);
}

void cpu_backend::feed_forward(const layer_weights& layer, std::size_t index, std::size_t rows) {
  const std::size_t dim = config_.intermediate;
  norm(act_.hidden(), layer.post_norm.data(), act_.normed(), rows);
  show(operation::post_norm, index, act_.normed(), config_.hidden, config_.hidden);
  if (config_.is_sparse(index)) {
    experts_.run(pool_, layer, act_.normed(), rows, act_.hidden());
  } else {
    multiply(layer.gate_up, pack(act_.normed(), rows, config_.hidden), act_.gate_up(), nullptr,
             false);
    show(operation::gate_up, index, act_.gate_up(), 2 * dim, 2 * dim);
    silu_mul_shared(pool_, act_.gate_up(), act_.gated(), rows, dim);
    show(operation::gated, index, act_.gated(), dim, dim);
    multiply(layer.down, pack(act_.gated(), rows, dim), act_.hidden(), nullptr, true);
  }
  show(operation::down, index, act_.hidden(), config_.hidden, config_.hidden);
}

void cpu_backend::make_logits(std::span<const std::uint32_t> logit_rows) {
  logit_count_ = logit_rows.size();
  if (logit_rows.empty())
    return;
  const std::size_t dim = config_.hidden;
  float* gathered = act_.gathered();
  for (std::size_t i = 0; i < logit_rows.size(); ++i)
    std::memcpy(gathered + i * dim, act_.hidden() + logit_rows[i] * dim, dim * sizeof(float));
  norm(gathered, weights_->final_norm().data(), act_.normed(), logit_rows.size());
  show(operation::final_norm, 0, act_.normed(), dim, dim);
  multiply(lm_head(), pack(act_.normed(), logit_rows.size(), dim), act_.logits(), nullptr, false);
  show(operation::logits, 0, act_.logits(), config_.vocabulary, config_.vocabulary);
}

void cpu_backend::forward(const forward_rows& rows) {
  const std::size_t count = rows.tokens.size();
  ROLLCAST_CHECK(count <= shape_.rows_max && rows.places.size() == count);
  ROLLCAST_CHECK(rows.logit_rows.size() <= shape_.logit_rows_max);
  items_ = plan_attention(rows.sequences.data(), rows.sequences.size(),
                          config_.kv_heads * latent_.shares(), act_.items());
  double keys = 0;
  for (const auto& sequence : rows.sequences)
    keys += static_cast<double>(sequence.rows) * (sequence.position + sequence.rows);
  item_ns_ = 0.15 * keys * static_cast<double>(config_.heads * config_.head_dim)
             / static_cast<double>(std::max<std::size_t>(items_, 1));
  if (observer_ != nullptr) [[unlikely]]
    note_positions(rows);
  if (config_.draft.kind == draft_kind::none)
    embed(rows.tokens);
  else
    input_.fuse(pool_, *weights_,
                config_.draft.own_embedding ? weights_->embedding() : lender_->embedding(), rows,
                act_.hidden());
  show(operation::embedding, 0, act_.hidden(), config_.hidden, config_.hidden);
  sparse_ = 0;
  for (std::size_t index = 0; index < config_.layers; ++index) {
    const auto& layer = weights_->layers()[index];
    attend(layer, index, rows);
    feed_forward(layer, index, count);
    if (rows.keep_states)
      keep_layer(index, count);
    if (rows.keep_experts && config_.is_sparse(index))
      keep_experts(count);
  }
  if (rows.keep_experts)
    expert_bytes_ = count * shape_.experts.position_bytes();
  if (rows.keep_states) {
    if (wish_.last)
      keep_last(count);
    states_kept_ = count * state_width_;
  }
  make_logits(rows.logit_rows);
}

// -- what follows a pass ------------------------------------------------------

void cpu_backend::sample(std::span<const sample_params> how, std::span<sampled_token> out) {
  ROLLCAST_CHECK(how.size() == logit_count_ && out.size() == logit_count_);
  const std::size_t vocabulary = config_.vocabulary;
  pool_.run(how.size(), grain_for(2.0 * static_cast<double>(vocabulary)),
            [&](std::size_t begin, std::size_t end, std::size_t thread) {
              for (std::size_t row = begin; row < end; ++row)
                out[row] = sample_token_cpu(act_.logits() + row * vocabulary, vocabulary, how[row],
                                            act_.sample_scratch(thread));
            });
}

void cpu_backend::score(std::span<const float> temperatures, std::span<const token_id> tokens,
                        std::span<float> out) {
  ROLLCAST_CHECK(tokens.size() == logit_count_ && out.size() == logit_count_);
  const std::size_t vocabulary = config_.vocabulary;
  pool_.run(tokens.size(), grain_for(1.0 * static_cast<double>(vocabulary)),
            [&](std::size_t begin, std::size_t end, std::size_t) {
              for (std::size_t row = begin; row < end; ++row)
                out[row] = token_logprob_cpu(act_.logits() + row * vocabulary, vocabulary,
                                             temperatures[row], tokens[row]);
            });
  show(operation::logprob, 0, out.data(), 1, 1);
}

std::byte* cpu_backend::group_at(std::size_t layer, std::span<const std::uint32_t> blocks,
                                 std::size_t group) const noexcept {
  const kv_layout kv = kv_of(layer);
  const std::size_t groups_per_block = kv.block_tokens / kv_group;
  return kv.data + blocks[group / groups_per_block] * kv.block_bytes()
         + group % groups_per_block * kv.group_bytes();
}

void cpu_backend::export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                            std::span<std::byte> image) const {
  ROLLCAST_CHECK(image.size() == groups * shape_.kv_group_bytes);
  const std::size_t bytes = kv_of(0).group_bytes();
  std::byte* to = image.data();
  for (std::size_t layer = 0; layer < config_.layers; ++layer)
    for (std::size_t group = 0; group < groups; ++group, to += bytes)
      std::memcpy(to, group_at(layer, blocks, group), bytes);
}

void cpu_backend::import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                            std::span<const std::byte> image) {
  ROLLCAST_CHECK(image.size() == groups * shape_.kv_group_bytes);
  const std::size_t bytes = kv_of(0).group_bytes();
  const std::byte* from = image.data();
  for (std::size_t layer = 0; layer < config_.layers; ++layer)
    for (std::size_t group = 0; group < groups; ++group, from += bytes)
      std::memcpy(group_at(layer, blocks, group), from, bytes);
}

constexpr std::uint32_t block_tokens_max = 65536;

expert_layout experts_of(const model_config& config) {
  expert_layout out;
  for (std::size_t layer = 0; layer < config.layers; ++layer)
    out.layers += config.is_sparse(layer) ? 1 : 0;
  if (out.layers == 0)
    return {};
  out.per_token = static_cast<std::uint32_t>(config.experts.per_token);
  out.id_bytes = config.experts.count <= 256 ? 1 : 2;
  return out;
}

result<void> check(const cpu_backend_options& options) {
  const auto bad = [](const std::string& what, std::uint64_t value, const std::string& must) {
    return fail(errc::bad_config, what + " is " + std::to_string(value) + ": it must be " + must);
  };
  if (options.threads == 0 || options.threads > 1024)
    return bad("threads", options.threads, "1 to 1024");
  if (options.kv_blocks == 0)
    return bad("kv-blocks", options.kv_blocks, "at least 1");
  if (options.block_tokens == 0 || options.block_tokens % kv_group != 0
      || options.block_tokens > block_tokens_max)
    return bad("block-tokens", options.block_tokens,
               "a multiple of " + std::to_string(kv_group) + ", at most "
                 + std::to_string(block_tokens_max));
  if (options.rows_max == 0 || options.logit_rows_max == 0)
    return bad("rows-max", options.rows_max, "at least 1");
  return {};
}

} // namespace

result<std::unique_ptr<backend>> make_cpu_backend(std::shared_ptr<const model_weights> weights,
                                                  const numerics_profile& profile,
                                                  const cpu_backend_options& options) {
  if (auto ok = check(options); !ok)
    return fail(ok);
  if (profile.gpu)
    return fail(errc::unsupported_numerics,
                "numerics profile " + std::string{profile.name}
                  + " needs a GPU: give --device cuda, or a profile whose name begins with cpu");
  const model_config& config = weights->config();
  device_shape shape;
  shape.vocabulary = static_cast<std::uint32_t>(config.vocabulary);
  shape.positions_max = static_cast<std::uint32_t>(config.max_positions);
  if (options.positions_max != 0)
    shape.positions_max = std::min(shape.positions_max, options.positions_max);
  shape.kv_blocks = options.kv_blocks;
  shape.block_tokens = options.block_tokens;
  shape.rows_max = options.rows_max;
  shape.logit_rows_max = std::min(options.logit_rows_max, options.rows_max);
  const kv_layout kv = kv_layout_of(config, profile.kv_type, options.block_tokens);
  shape.kv_group_bytes = config.layers * kv.group_bytes();
  shape.experts = experts_of(config);
  std::size_t kv_bytes = 0;
  if (__builtin_mul_overflow(config.layers * kv.block_bytes(), options.kv_blocks, &kv_bytes))
    return fail(errc::bad_config, "kv-blocks is " + std::to_string(options.kv_blocks)
                                    + ": so many blocks exceed the address space");
  auto kv_cache = aligned_buffer::make(kv_bytes);
  if (!kv_cache)
    return fail(kv_cache);
  // A pool that is given may have other threads than `options.threads`; each needs its scratch.
  auto pool = options.pool ? options.pool : std::make_shared<thread_pool>(options.threads);
  auto activations = cpu_activations::make(config, profile.arithmetic, shape, pool->size());
  if (!activations)
    return fail(activations);
  auto experts = cpu_experts::make(config, profile.arithmetic, options.rows_max);
  if (!experts)
    return fail(experts);
  auto latent = cpu_latent::make(config, profile.arithmetic, options.rows_max);
  if (!latent)
    return fail(latent);
  auto input = cpu_draft_input::make(config, profile.arithmetic, options.rows_max);
  if (!input)
    return fail(input);
  return std::make_unique<cpu_backend>(
    std::move(weights), profile, std::move(pool), std::move(*activations), std::move(*experts),
    std::move(*latent), std::move(*input), std::move(*kv_cache), shape);
}

} // namespace rollcast
