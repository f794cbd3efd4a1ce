#include "engine/backend/cuda_pass.hpp"

#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/gemm.hpp"
#include "kernels/cuda/kv.hpp"
#include "kernels/cuda/rows.hpp"

#include <cmath>
#include <type_traits>
#include <utility>

namespace rollcast {

namespace gpu = kernels::cuda;

namespace {

/// Graphs that are kept; with more shapes than that all are made anew.
constexpr std::size_t graphs_max = 128;

/// Queues the parts of one pass, and keeps the first failure: after it nothing is queued.
class pass {
public:
  pass(const cuda_model& model, const cuda_pass_shape& shape, gpu::stream_handle stream)
    : c_(model.config), weights_(model.weights), b_(model.buffers), kv_(model.kv),
      products_(model.products), shape_(shape), stream_(stream) {}

  gpu::device_status run() {
    queue(gpu::embed, {b_.tokens, weights_.embedding(), b_.hidden, shape_.rows, c_.hidden});
    for (std::size_t i = 0; i < c_.layers; ++i) {
      attend(weights_.layers()[i], kv_.layer(i));
      feed_forward(weights_.layers()[i]);
    }
    if (shape_.logit_rows > 0)
      make_logits();
    return std::move(status_);
  }

private:
  template <class Args>
  void queue(gpu::device_status (*operation)(const Args&, gpu::stream_handle),
             const std::type_identity_t<Args>& args) {
    if (status_)
      status_ = operation(args, stream_);
  }

  void norm(const float* w, const std::uint32_t* rows_of, std::size_t rows) {
    gpu::rms_norm_args args;
    args.x = b_.hidden;
    args.x_stride = c_.hidden;
    args.rows_of = rows_of;
    args.w = w;
    args.y = b_.normed;
    args.y_stride = c_.hidden;
    args.rows = rows;
    args.dim = c_.hidden;
    args.eps = c_.rms_eps;
    queue(gpu::rms_norm, args);
  }

  gpu::gemm_args product(const gpu::bf16_bits* x, const gpu::bf16_bits* w, void* y,
                         std::size_t rows, std::size_t n, std::size_t k) const {
    gpu::gemm_args args;
    args.x = x;
    args.x_stride = k;
    args.w = w;
    args.y = y;
    args.y_stride = n;
    args.rows = rows;
    args.n = n;
    args.k = k;
    args.workspace = b_.workspace;
    return args;
  }

  void multiply(const gpu::gemm_args& args) {
    if (products_ == nullptr) {
      queue(gpu::gemm, args);
    } else if (args.epilogue == gpu::gemm_epilogue::silu_pairs) {
      multiply_fast(args, b_.gate_up, gpu::gemm_output::bf16);
      queue(gpu::silu_pairs, {b_.gate_up, b_.gated, args.rows, args.n / 2});
    } else {
      multiply_fast(args, args.y, args.output);
    }
  }

  /// The same by a library, without what follows the sum but bias and residual.
  void multiply_fast(const gpu::gemm_args& args, void* y, gpu::gemm_output output) {
    if (status_)
      status_ = products_->multiply(
        {args.x, args.w, y, args.rows, args.n, args.k, output, args.bias, args.residual != nullptr},
        b_.workspace, stream_);
  }

  /// hidden += x * w^T
  void add_product(const gpu::bf16_bits* x, const gpu::bf16_bits* w, std::size_t k) {
    auto args = product(x, w, b_.hidden, shape_.rows, c_.hidden, k);
    args.residual = b_.hidden;
    args.residual_stride = c_.hidden;
    multiply(args);
  }

  void attend(const cuda_layer& layer, const kernels::kv_layout& kv) {
    const std::size_t q_width = c_.heads * c_.head_dim;
    const std::size_t qkv_width = q_width + 2 * c_.kv_heads * c_.head_dim;
    norm(layer.input_norm, nullptr, shape_.rows);
    auto qkv = product(b_.normed, layer.qkv, b_.qkv, shape_.rows, qkv_width, c_.hidden);
    qkv.bias = layer.qkv_bias;
    multiply(qkv);
    gpu::qkv_rope_args rope;
    rope.qkv = b_.qkv;
    rope.qkv_stride = qkv_width;
    rope.q = b_.q;
    rope.q_stride = q_width;
    rope.rows = shape_.rows;
    rope.heads = c_.heads;
    rope.kv_heads = c_.kv_heads;
    rope.q_norm = layer.q_norm;
    rope.k_norm = layer.k_norm;
    rope.eps = c_.rms_eps;
    rope.cos_sin = b_.cos_sin;
    rope.places = b_.places;
    rope.kv = kv;
    queue(gpu::qkv_rope_append, rope);
    if (shape_.copies && status_)
      status_ = gpu::copy_kv(kv, b_.copies, &b_.counts->copies, stream_);
    gpu::attention_args args;
    args.q = b_.q;
    args.q_stride = q_width;
    args.out = b_.attended;
    args.out_stride = q_width;
    args.heads = c_.heads;
    args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    args.kv = kv;
    args.sequences = b_.sequences;
    args.items = b_.items;
    args.item_count = &b_.counts->items;
    args.items_max = shape_.items;
    args.partials = b_.partials;
    args.counters = b_.counters;
    queue(gpu::attend, args);
    add_product(b_.attended, layer.o, q_width);
  }

  void feed_forward(const cuda_layer& layer) {
    norm(layer.post_norm, nullptr, shape_.rows);
    auto gated =
      product(b_.normed, layer.gate_up, b_.gated, shape_.rows, 2 * c_.intermediate, c_.hidden);
    gated.y_stride = c_.intermediate;
    gated.output = gpu::gemm_output::bf16;
    gated.epilogue = gpu::gemm_epilogue::silu_pairs;
    multiply(gated);
    add_product(b_.gated, layer.down, c_.intermediate);
  }

  void make_logits() {
    norm(weights_.final_norm(), b_.logit_index, shape_.logit_rows);
    multiply(product(b_.normed, weights_.lm_head(), b_.logits, shape_.logit_rows, c_.vocabulary,
                     c_.hidden));
  }

  const model_config& c_;
  const cuda_weights& weights_;
  const cuda_buffers& b_;
  const cuda_kv& kv_;
  const product_library* products_;
  cuda_pass_shape shape_;
  gpu::stream_handle stream_;
  gpu::device_status status_;
};

} // namespace

std::uint32_t padded_rows(std::uint32_t rows) noexcept {
  const auto up = [rows](std::uint32_t step) { return (rows + step - 1) / step * step; };
  if (rows <= 2)
    return rows;
  if (rows <= 8)
    return rows <= 4 ? 4 : 8;
  return up(rows <= 64 ? 8 : rows <= 256 ? 32 : 128);
}

gpu::device_status run_pass(const cuda_model& model, const cuda_pass_shape& shape,
                            gpu::stream_handle stream) {
  return pass{model, shape, stream}.run();
}

gpu::device_status cuda_graphs::run(const cuda_model& model, const cuda_pass_shape& shape,
                                    std::uint64_t weights_serial, gpu::stream_handle stream) {
  if (entries_.size() >= graphs_max && !entries_.contains(shape))
    entries_.clear();
  const auto [at, fresh] = entries_.try_emplace(shape);
  auto& entry = at->second;
  if (fresh)
    return run_pass(model, shape, stream);
  if (!entry.graph || entry.serial != weights_serial) {
    if (auto ok = capture(model, shape, entry, stream); !ok)
      return ok;
    entry.serial = weights_serial;
  }
  ++launched_;
  return entry.graph->launch(stream);
}

gpu::device_status cuda_graphs::capture(const cuda_model& model, const cuda_pass_shape& shape,
                                        entry& into, gpu::stream_handle stream) {
  if (auto ok = gpu::graph::begin_capture(stream); !ok)
    return ok;
  auto queued = run_pass(model, shape, stream);
  auto made = gpu::graph::end_capture(stream); // ended in any case: the stream is used again
  if (!queued)
    return queued;
  if (!made)
    return tl::unexpected(made.error());
  ++captured_;
  if (!into.graph || !into.graph->update(*made))
    into.graph = std::move(*made);
  return {};
}

} // namespace rollcast
