#pragma once

#include "kernels/cuda/gemm.hpp"
#include "kernels/rope.hpp"

#include <cstddef>
#include <cstdint>

/// Operations on rows. Inside they are f32 and give, before the one rounding of an output to bf16,
/// the bits of the CPU's kernels of the same name (tests/unit/cuda/rows_test.cpp). All pointers are
/// of the device, strides count elements, a row is a function of its own inputs.
namespace rollcast::kernels::cuda {

/// out[r] = the embedding of tokens[r], widened.
struct embed_args {
  const std::int32_t* tokens = nullptr; ///< [rows], each below the table's rows.
  const bf16_bits* table = nullptr;     ///< [vocabulary, dim].
  float* out = nullptr;                 ///< [rows, dim].
  std::size_t rows = 0;
  std::size_t dim = 0;
};
device_status embed(const embed_args& args, stream_handle stream);

/// y[r] = rms_norm(x[rows_of ? rows_of[r] : r]) * w, as kernels/rms_norm.hpp, rounded once to bf16.
struct rms_norm_args {
  const float* x = nullptr; ///< [.., dim].
  std::size_t x_stride = 0;
  const std::uint32_t* rows_of = nullptr; ///< [rows] or null: which rows of `x` to take.
  const float* w = nullptr;               ///< [dim].
  bf16_bits* y = nullptr;                 ///< [rows, dim].
  std::size_t y_stride = 0;
  std::size_t rows = 0;
  std::size_t dim = 0; ///< At most 32768.
  float eps = 0;
};
device_status rms_norm(const rms_norm_args& args, stream_handle stream);

/// The step between the qkv product and attention, as kernels/rope.hpp: optional norm of each q and
/// k head, rotation, K and V rounded once into the cache; q is rounded once into `q`.
struct qkv_rope_args {
  const float* qkv = nullptr; ///< [rows, (heads + 2 * kv_heads) * head_dim].
  std::size_t qkv_stride = 0;
  bf16_bits* q = nullptr; ///< [rows, heads * head_dim].
  std::size_t q_stride = 0;
  std::size_t rows = 0;
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  const float* q_norm = nullptr; ///< [head_dim] or null.
  const float* k_norm = nullptr;
  float eps = 0;
  const float* cos_sin = nullptr; ///< `rope_table`, on the device.
  const row_place* places =
    nullptr;    ///< [rows]; rows of one `kv_block` value `no_block` write none.
  kv_layout kv; ///< bf16, head_dim 64 or 128.
};

/// The `kv_block` of a padded row: its K and V go nowhere.
inline constexpr std::uint32_t no_block = 0xffffffffu;

device_status qkv_rope_append(const qkv_rope_args& args, stream_handle stream);

/// out[r, d] = silu(gate_up[r, d]) * gate_up[r, dim + d], f32 as kernels/elementwise.hpp, rounded
/// once to bf16. For weights whose gate and up rows do not take turns; see `gemm_epilogue`.
struct silu_mul_args {
  const float* gate_up = nullptr; ///< [rows, 2 * dim].
  std::size_t gate_up_stride = 0;
  bf16_bits* out = nullptr; ///< [rows, dim].
  std::size_t out_stride = 0;
  std::size_t rows = 0;
  std::size_t dim = 0;
};
device_status silu_mul(const silu_mul_args& args, stream_handle stream);

/// out[r, d] = silu(pairs[r, 2 * d]) * pairs[r, 2 * d + 1], the same of rows of gate and up that
/// take turns and were rounded to bf16: of a product by a library, which cannot do it itself.
struct silu_pairs_args {
  const bf16_bits* pairs = nullptr; ///< [rows, 2 * dim], 4-byte aligned.
  bf16_bits* out = nullptr;         ///< [rows, dim].
  std::size_t rows = 0;
  std::size_t dim = 0;
};
device_status silu_pairs(const silu_pairs_args& args, stream_handle stream);

} // namespace rollcast::kernels::cuda
