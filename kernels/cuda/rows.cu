#include "kernels/cuda/kv.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/numerics.cuh"
#include "kernels/cuda/rows.hpp"
#include "kernels/reduce_order.hpp"

#include <algorithm>

namespace rollcast::kernels::cuda {
namespace {

constexpr unsigned row_threads = 256;

unsigned ceil_div(std::size_t a, std::size_t b) noexcept {
  return static_cast<unsigned>((a + b - 1) / b);
}

// -- embedding ----------------------------------------------------------------

ROLLCAST_KERNEL(row_threads, 1) embed_kernel(embed_args args) {
  const std::size_t row = simt::block_x();
  const auto token = static_cast<std::size_t>(args.tokens[row]);
  for (std::size_t d = simt::thread_x(); d < args.dim; d += row_threads)
    args.out[row * args.dim + d] = simt::from_bf16(args.table[token * args.dim + d]);
}

// -- norm ---------------------------------------------------------------------

/// One block a row. All threads fetch it, the first warp sums its squares in the house order, with
/// two of the 64 lanes to each of its own, and all threads scale it.
ROLLCAST_KERNEL(row_threads, 1) rms_norm_kernel(rms_norm_args args) {
  auto* const kept = reinterpret_cast<float*>(simt::shared_memory());
  float* const root_of_all = kept + args.dim;
  const std::size_t row = simt::block_x();
  const std::size_t from = args.rows_of != nullptr ? args.rows_of[row] : row;
  const float* const x = args.x + from * args.x_stride;
  for (std::size_t d = simt::thread_x(); d < args.dim; d += row_threads)
    kept[d] = x[d];
  simt::sync_block();
  if (simt::warp() == 0) {
    float low = 0.0f, high = 0.0f;
    for (std::size_t at = simt::lane(); at < args.dim; at += reduce_lanes) {
      low = simt::fused(kept[at], kept[at], low);
      if (at + 32 < args.dim)
        high = simt::fused(kept[at + 32], kept[at + 32], high);
    }
    const float sum = fold_64(low, high);
    if (simt::lane() == 0)
      *root_of_all = simt::square_root(sum / static_cast<float>(args.dim) + args.eps);
  }
  simt::sync_block();
  const float root = *root_of_all;
  for (std::size_t d = simt::thread_x(); d < args.dim; d += row_threads)
    args.y[row * args.y_stride + d] = simt::to_bf16(kept[d] / root * args.w[d]);
}

// -- q, k, v ------------------------------------------------------------------

constexpr unsigned heads_per_block = 4;

/// One warp a head. Lane `t` holds elements t, t + 32, ...: so both halves of each rotated pair,
/// and virtual lanes t and t + 32 of the norm's sum.
template <int HeadDim>
ROLLCAST_DEVICE void norm_head(float (&x)[HeadDim / 32], const float* norm, float eps) {
  float low = 0.0f, high = 0.0f;
#pragma unroll
  for (int i = 0; i < HeadDim / 32; i += 2) {
    low = simt::fused(x[i], x[i], low);
    high = simt::fused(x[i + 1], x[i + 1], high);
  }
  const float sum = fold_64(low, high);
  const float root = simt::square_root(sum / static_cast<float>(HeadDim) + eps);
#pragma unroll
  for (int i = 0; i < HeadDim / 32; ++i)
    x[i] = x[i] / root * norm[simt::lane() + 32 * static_cast<unsigned>(i)];
}

template <int HeadDim>
ROLLCAST_DEVICE void rotate_head(float (&x)[HeadDim / 32], const float* cos_sin) {
  constexpr int half = HeadDim / 64;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const unsigned at = simt::lane() + 32 * static_cast<unsigned>(i);
    const float c = cos_sin[at], s = cos_sin[HeadDim / 2 + at];
    const float x1 = x[i], x2 = x[i + half];
    x[i] = simt::fused(x1, c, -(x2 * s));
    x[i + half] = simt::fused(x2, c, x1 * s);
  }
}

template <int HeadDim>
ROLLCAST_KERNEL(32 * heads_per_block, 1)
qkv_rope_kernel(qkv_rope_args args) {
  constexpr int held = HeadDim / 32;
  const std::size_t row = simt::block_x();
  const std::size_t head = simt::block_y() * heads_per_block + simt::warp();
  const std::size_t all = args.heads + 2 * args.kv_heads;
  if (head >= all) // The whole warp: what follows has no barrier of the block.
    return;
  const row_place place = args.places[row];
  const float* const from = args.qkv + row * args.qkv_stride + head * HeadDim;
  const bool is_q = head < args.heads, is_k = !is_q && head < args.heads + args.kv_heads;
  float x[held];
#pragma unroll
  for (int i = 0; i < held; ++i)
    x[i] = from[simt::lane() + 32 * static_cast<unsigned>(i)];
  if (is_q || is_k) {
    if (const float* const norm = is_q ? args.q_norm : args.k_norm; norm != nullptr)
      norm_head<HeadDim>(x, norm, args.eps);
    rotate_head<HeadDim>(x, args.cos_sin + std::size_t{place.position} * HeadDim);
  }
  if (!is_q && place.kv_block == no_block)
    return;
  const std::size_t slot = place.position % args.kv.block_tokens, lane_of = slot % kv_group;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const std::size_t d = simt::lane() + 32 * static_cast<unsigned>(i);
    const bf16_bits rounded = simt::to_bf16(x[i]);
    if (is_q) {
      args.q[row * args.q_stride + head * HeadDim + d] = rounded;
      continue;
    }
    const std::size_t kv_head = (head - args.heads) % args.kv_heads;
    const std::size_t group =
      std::size_t{place.kv_block} * (args.kv.block_tokens / kv_group) + slot / kv_group;
    auto* const tile = reinterpret_cast<bf16_bits*>(args.kv.data)
                       + (group * args.kv_heads + kv_head) * 2 * kv_group * HeadDim;
    if (is_k)
      tile[d * kv_group + lane_of] = rounded;
    else
      tile[kv_group * HeadDim + lane_of * HeadDim + d] = rounded;
  }
}

// -- silu ---------------------------------------------------------------------

ROLLCAST_KERNEL(row_threads, 1) silu_mul_kernel(silu_mul_args args) {
  const std::size_t row = simt::block_x();
  const std::size_t d = std::size_t{simt::block_y()} * row_threads + simt::thread_x();
  if (d >= args.dim)
    return;
  const float* const gate = args.gate_up + row * args.gate_up_stride + d;
  args.out[row * args.out_stride + d] =
    simt::to_bf16(gate[0] / (1.0f + exp_f32(-gate[0])) * gate[args.dim]);
}

/// One thread an element of all rows.
ROLLCAST_KERNEL(row_threads, 1) silu_pairs_kernel(silu_pairs_args args) {
  const std::size_t at = std::size_t{simt::block_x()} * row_threads + simt::thread_x();
  if (at >= args.rows * args.dim)
    return;
  const std::uint32_t pair = reinterpret_cast<const std::uint32_t*>(args.pairs)[at];
  const float gate = simt::from_bf16(static_cast<std::uint16_t>(pair));
  const float up = simt::from_bf16(static_cast<std::uint16_t>(pair >> 16));
  args.out[at] = simt::to_bf16(gate / (1.0f + exp_f32(-gate)) * up);
}

} // namespace

device_status embed(const embed_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  return launch("embed", embed_kernel, {{ceil_div(args.rows, 1), 1, 1}, row_threads, 0}, args,
                stream);
}

device_status rms_norm(const rms_norm_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  static_assert((32768 + 4) * sizeof(float) <= shared_bytes_needed);
  if (args.dim == 0 || args.dim > 32768)
    return refused("rms_norm: rows of " + std::to_string(args.dim)
                   + " elements, must be 1 to 32768");
  const launch_shape shape{
    {ceil_div(args.rows, 1), 1, 1}, row_threads, (args.dim + 4) * sizeof(float)};
  return launch("rms_norm", rms_norm_kernel, shape, args, stream);
}

device_status qkv_rope_append(const qkv_rope_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  const auto& kv = args.kv;
  if ((kv.head_dim != 64 && kv.head_dim != 128) || !has_plain_tiles(kv)
      || kv.kv_heads != args.kv_heads)
    return refused("qkv_rope_append: head_dim " + std::to_string(kv.head_dim)
                   + ", must be 64 or 128, in a bf16 cache of as many kv heads");
  const launch_shape shape{
    {ceil_div(args.rows, 1), ceil_div(args.heads + 2 * args.kv_heads, heads_per_block), 1},
    32 * heads_per_block,
    0};
  return launch("qkv_rope_append", kv.head_dim == 64 ? qkv_rope_kernel<64> : qkv_rope_kernel<128>,
                shape, args, stream);
}

device_status silu_mul(const silu_mul_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  const launch_shape shape{
    {ceil_div(args.rows, 1), ceil_div(args.dim, row_threads), 1}, row_threads, 0};
  return launch("silu_mul", silu_mul_kernel, shape, args, stream);
}

device_status silu_pairs(const silu_pairs_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  const launch_shape shape{{ceil_div(args.rows * args.dim, row_threads), 1, 1}, row_threads, 0};
  return launch("silu_pairs", silu_pairs_kernel, shape, args, stream);
}

} // namespace rollcast::kernels::cuda
