#include "engine/backend/cpu_latent.hpp"

#include "engine/backend/cpu_ops.hpp"
#include "kernels/gemm.hpp"
#include "kernels/rms_norm.hpp"

#include <algorithm>

namespace rollcast {

using namespace kernels;

namespace {

/// Query heads of one attention item: enough to pay for turning a tile's keys into values.
constexpr std::size_t item_heads = 32;

} // namespace

result<cpu_latent> cpu_latent::make(const model_config& config, arithmetic how,
                                    std::size_t rows_max) {
  cpu_latent out;
  const auto& latent = config.latent;
  if (latent.rank == 0)
    return out;
  out.heads_ = config.heads;
  out.config_ = latent;
  out.how_ = how;
  if (config.heads % item_heads == 0)
    out.shares_ = config.heads / item_heads;
  std::size_t size = 0;
  const auto place = [&size](std::size_t& offset, std::size_t bytes) {
    offset = size;
    size += (bytes + 127) / 64 * 64; // a spare line, so that a kernel may prefetch past the end
  };
  const std::size_t widest = std::max(latent.nope, latent.rank);
  const std::size_t of_heads = config.heads * packed_rows_bytes(how, rows_max, widest);
  if (latent.q_rank != 0)
    place(out.q_, rows_max * config.heads * (latent.nope + latent.rope) * sizeof(float));
  place(out.queries_, rows_max * config.heads * config.head_dim * sizeof(float));
  place(out.mixed_, rows_max * config.heads * latent.rank * sizeof(float));
  place(out.packed_, std::max(of_heads, packed_rows_bytes(how, rows_max, latent.q_rank)));
  auto memory = aligned_buffer::make(size);
  if (!memory)
    return fail(memory);
  out.memory_ = std::move(*memory);
  return out;
}

/// One product a head: head h's rows of `x` (`x_step` apart) against its panels of `w`.
void cpu_latent::each_head(thread_pool& pool, const packed_matrix& w, const float* x,
                           std::size_t x_stride, std::size_t x_step, float* y, std::size_t y_stride,
                           std::size_t y_step, std::size_t rows) {
  const std::size_t columns = w.n / heads_;
  const std::size_t panels = columns / panel_columns;
  const std::size_t bytes = packed_rows_bytes(how_, rows, w.k);
  const double head_ns = panel_ns(static_cast<double>(rows), w.k) * static_cast<double>(panels);
  pool.run(heads_, grain_for(head_ns), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t head = begin; head < end; ++head) {
      const packed_rows packed{at<std::byte>(packed_) + head * bytes, rows, w.k, how_};
      pack_rows(x + head * x_step, x_stride, packed, 0, row_tile_count(how_, rows));
      // The panels of a head write columns from head * columns on.
      float* const to = y + head * y_step - head * columns;
      gemm_cpu({w, packed, to, y_stride, nullptr, false}, head * panels, (head + 1) * panels);
    }
  });
}

void cpu_latent::project(thread_pool& pool, const layer_weights& layer, float* qkv,
                         std::size_t rows, const float* cos_sin, const row_place* places,
                         const kv_layout& kv) {
  const std::size_t width = layer.qkv.n;
  const std::size_t q_width = heads_ * (config_.nope + config_.rope);
  const float* q = qkv;
  std::size_t q_stride = width;
  if (const std::size_t rank = config_.q_rank; rank != 0) {
    const rms_norm_args norm{qkv, layer.q_a_norm.data(), qkv, rank, width, width, config_.norm_eps};
    pool.run(
      rows, grain_for(0.3 * static_cast<double>(rank)),
      [&](std::size_t begin, std::size_t end, std::size_t) { rms_norm_cpu(norm, begin, end); });
    const auto packed = pack_shared(pool, qkv, width, rows, rank, how_, at<std::byte>(packed_));
    multiply_shared(pool, {layer.q_b, packed, at<float>(q_), q_width, nullptr, false});
    q = at<float>(q_);
    q_stride = q_width;
  }
  const latent_append_args append{q,
                                  q_stride,
                                  qkv + (width - kv.head_dim),
                                  width,
                                  heads_,
                                  config_.nope,
                                  config_.rope,
                                  layer.kv_a_norm.data(),
                                  config_.norm_eps,
                                  cos_sin,
                                  places,
                                  queries(),
                                  kv};
  pool.run(rows, grain_for(0.6 * static_cast<double>(q_width)),
           [&](std::size_t begin, std::size_t end, std::size_t) {
             latent_append_cpu(append, begin, end);
           });
  each_head(pool, layer.absorb, q, q_stride, config_.nope + config_.rope, queries(),
            heads_ * kv.head_dim, kv.head_dim, rows);
}

void cpu_latent::expand(thread_pool& pool, const layer_weights& layer, std::size_t rows,
                        float* out) {
  each_head(pool, layer.expand, mixed(), heads_ * config_.rank, config_.rank, out,
            heads_ * config_.value, config_.value, rows);
}

} // namespace rollcast
