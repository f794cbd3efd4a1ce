#pragma once

#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

// -- weights ------------------------------------------------------------------

/// Output columns of one panel. The unit in which threads share a GEMM.
inline constexpr std::size_t panel_columns = 32;

/// A weight matrix packed for streaming: panels of `panel_columns` output columns, K ascending
/// inside a panel, padded with zeros to whole panels and to an even K.
struct packed_matrix {
  const std::byte* data = nullptr; ///< 64-byte aligned.
  std::size_t n = 0;               ///< Output columns (rows of the checkpoint's [out, in] tensor).
  std::size_t k = 0;               ///< Input columns.
  dtype type = dtype::bf16;        ///< bf16, or f32 for f32 and f16 checkpoints in `cpu-f32-v1`.
};

constexpr std::size_t panel_count(std::size_t n) noexcept {
  return (n + panel_columns - 1) / panel_columns;
}

/// Bytes of a packed [n, k] matrix; a multiple of 64.
std::size_t packed_bytes(dtype type, std::size_t n, std::size_t k) noexcept;

/// Copies rows [0, rows) of a row-major [rows, k] checkpoint tensor into output columns
/// [column, column + rows) of a packed [n, k] matrix at `out`, so that q, k and v (or gate and up)
/// can share one matrix. bf16 <- bf16 and f32 <- any are exact; bf16 <- f32/f16 rounds once, to
/// nearest even. `out` must have been zeroed, so that the padding is zero. Calls for other columns
/// of the same matrix may run at the same time. `source` may be unaligned.
void pack_weights(const void* source, dtype source_type, std::size_t rows, std::size_t k,
                  std::size_t column, std::byte* out, dtype out_type, std::size_t n) noexcept;

// -- activations --------------------------------------------------------------

/// Bytes of `rows` packed activation rows of width `k`; a multiple of 64.
std::size_t packed_rows_bytes(arithmetic how, std::size_t rows, std::size_t k) noexcept;

/// Rows of the activation matrix, in the order that the GEMM's inner loop reads them.
struct packed_rows {
  std::byte* data = nullptr; ///< 64-byte aligned, `packed_rows_bytes` long.
  std::size_t rows = 0;
  std::size_t k = 0;
  arithmetic how = arithmetic::f32;
};

/// Row tiles in which `rows` activation rows are packed; threads share packing by tile. Tiles
/// differ by one row at most, and have 13 rows at most.
std::size_t row_tile_count(arithmetic how, std::size_t rows) noexcept;

/// Packs row tiles [tile_begin, tile_end) of `x` ([out.rows, out.k], `x_stride` elements a row).
/// The bf16 profile rounds to bf16, nearest even, and makes subnormals zero.
void pack_rows(const float* x, std::size_t x_stride, const packed_rows& out, std::size_t tile_begin,
               std::size_t tile_end) noexcept;

/// The same of rows that lie apart: row i of `out` is row `rows[i]` of `x`. Gives the bits of
/// `pack_rows` over those rows. @param rows  [out.rows]; may name a row twice.
void pack_rows_of(const float* x, std::size_t x_stride, const std::uint32_t* rows,
                  const packed_rows& out, std::size_t tile_begin, std::size_t tile_end) noexcept;

// -- the product --------------------------------------------------------------

/// y[m, n] = sum_k x[m, k] * w[n, k]  (+ bias[n])  (+ y[m, n] when `accumulate`)
///
/// @param y     [rows, n] with `y_stride` elements a row; aliases nothing.
/// @param bias  [n] or null; added after the chain, before `accumulate`'s one addition.
/// Numerics:
///   f32   one chain of f32 FMAs over k ascending from +0, weights widened exactly.
///   bf16  x rounded to bf16; from acc = +0, for each pair (2i, 2i + 1), ascending:
///         acc = ftz(fma(x[2i+1], w[2i+1], acc)), then acc = ftz(fma(x[2i], w[2i], acc)),
///         where subnormal x and w count as zero and ftz makes a result zero, of its sign, if it is
///         below 2^-126 after rounding to 24 bits with an unbounded exponent. This is what
///         vdpbf16ps does, and its bits on every machine. Bias and `accumulate` are plain f32
///         additions.
///   An odd k is padded with a zero x and w, a step like any other (it makes acc = -0 a +0).
///   y[m, n] is a function of (x[m, :], w[n, :], bias[n], y[m, n]) alone, bit for bit, except for
///   the sign and payload of a NaN.
/// `w.type` is bf16 in the bf16 profile, and bf16 or f32 in the f32 profile.
struct gemm_args {
  packed_matrix w;
  packed_rows x;
  float* y = nullptr;
  std::size_t y_stride = 0;
  const float* bias = nullptr;
  bool accumulate = false;
};

/// Computes output panels [panel_begin, panel_end) for all rows of `args.x`. Threads share a
/// product by panel ranges; how they are cut changes no bit. May fetch cache lines past the range,
/// or past the matrix, but never reads them.
void gemm_cpu(const gemm_args& args, std::size_t panel_begin, std::size_t panel_end) noexcept;

} // namespace rollcast::kernels
