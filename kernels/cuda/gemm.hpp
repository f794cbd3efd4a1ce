#pragma once

#include "kernels/cuda/runtime.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

/// Bits of a bf16 number.
using bf16_bits = std::uint16_t;

/// What becomes of a finished sum.
enum class gemm_epilogue : std::uint8_t {
  store,      ///< y[m, n]
  silu_pairs, ///< y[m, i] = silu(column 2i) * column 2i + 1: rows of gate and up take turns in `w`.
};

enum class gemm_output : std::uint8_t { f32, bf16 };

/// Which code runs: for tests and benchmarks. All give the same bits.
enum class gemm_variant : std::uint8_t {
  automatic,
  rows_16, ///< 16 x 64 tiles, one block a leaf.
  rows_32, ///< 32 x 64 tiles, one block a leaf.
  rows_64, ///< 64 x 64 tiles, one block a leaf.
  tiles,   ///< 128 x 128 tiles, each block walks all leaves.
};

/// y[m, n] = sum_k x[m, k] * w[n, k]  (+ bias[n])  (+ residual[m, n])
///
/// Shapes: `x` is [rows, k] bf16; `w` is [n, k] bf16, row-major without gaps, as a checkpoint has
/// it; `y` is [rows, n], or [rows, n / 2] with `silu_pairs` (n even). All pointers are of the
/// device; `x` and `w` 16-byte aligned, `k` and `x_stride` multiples of 8.
/// Numerics: K is cut in `gemm_leaves(n, k)` leaves of whole multiples of 64. A leaf is one
///           ascending chain of `mma.m16n8k16` from +0, a k past the end counting as zero times
///           zero. Leaves are added in f32, ascending: ((leaf 0 + leaf 1) + leaf 2) ... Then one
///           f32 addition each for bias and residual, then silu (as kernels/elementwise.hpp, f32),
///           then one rounding if the output is bf16. y[m, n] is a function of (x[m, :], w[n, :],
///           bias[n], residual[m, n]) alone, bit for bit, for every `rows`: which of the variants
///           ran is a matter of speed (tests/unit/cuda/gemm_test.cpp). What one mma does to the
///           last bit is the device's; the emulator's is one rounding of the exact sum of an f32
///           and 16 products, so that golden bits of a GPU are recorded on a GPU.
struct gemm_args {
  const bf16_bits* x = nullptr;
  std::size_t x_stride = 0;
  const bf16_bits* w = nullptr;
  void* y = nullptr;
  std::size_t y_stride = 0;
  std::size_t rows = 0;
  std::size_t n = 0;
  std::size_t k = 0;
  const float* bias = nullptr;     ///< [n] or null.
  const float* residual = nullptr; ///< [rows, n] or null; may be `y` if that is f32.
  std::size_t residual_stride = 0;
  gemm_output output = gemm_output::f32;
  gemm_epilogue epilogue = gemm_epilogue::store;
  std::byte* workspace = nullptr; ///< `gemm_workspace_bytes` long; see there.
  gemm_variant variant = gemm_variant::automatic;
};

/// Leaves of a product; from the shape of the weights alone, so that bits do not depend on rows.
std::uint32_t gemm_leaves(std::size_t n, std::size_t k) noexcept;

/// Bytes of workspace for products of up to `rows_max` rows. Products on one stream share one (as
/// large as the largest needs); its first use must find it zeroed, and each leaves it ready for the
/// next.
std::size_t gemm_workspace_bytes(std::size_t rows_max, std::size_t n, std::size_t k) noexcept;

/// Queues the product. Fails if a shape or an alignment is not as above, or the launch fails.
/// Cost:  up to 256 rows it streams the weights, one block a leaf and 64 columns; above, tiles of
///        128 x 128 walk all leaves.
device_status gemm(const gemm_args& args, stream_handle stream);

} // namespace rollcast::kernels::cuda
