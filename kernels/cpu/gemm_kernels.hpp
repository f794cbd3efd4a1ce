#pragma once

#include "kernels/gemm.hpp"

#include <cstddef>

namespace rollcast::kernels::detail {

/// Rows of one activation tile at most: 13 rows x 32 columns keep 26 of AVX-512's 32 registers as
/// accumulators and leave what g++ needs to hold the rest without spilling. Part of the packed row
/// layout, so the same on every target.
inline constexpr std::size_t tile_rows_max = 13;

/// Accumulators of one tile and panel.
inline constexpr std::size_t tile_floats_max = tile_rows_max * panel_columns;

/// One tile of rows against one panel, for a run of k pairs.
struct gemm_tile {
  const std::byte* w;     ///< The panel, at the first pair.
  const std::byte* x;     ///< The row tile, at the first pair.
  std::size_t pairs;      ///< Pairs of k to add.
  const std::byte* ahead; ///< Weights to fetch into L2 meanwhile; may lie past the matrix.
  std::size_t ahead_step; ///< Bytes of them for each half pair.
  float* c;               ///< Accumulators [rows][panel_columns], 64-byte aligned.
  bool resume;            ///< Continue the chains that `c` holds; else start from +0.
};

/// What happens to the finished accumulators of one tile and panel.
struct gemm_epilogue {
  const float* c;      ///< [rows][panel_columns].
  float* y;            ///< [rows, columns], `y_stride` elements a row.
  const float* bias;   ///< [columns] or null.
  std::size_t rows;    ///< Rows of the tile.
  std::size_t columns; ///< Columns of the panel that exist, 1 .. panel_columns.
  std::size_t y_stride;
  bool accumulate;
};

/// The inner loop for tiles of 1, 2, .. tile_rows_max rows.
struct gemm_loops {
  void (*by_rows[tile_rows_max])(const gemm_tile&);
};

/// The code of one instruction set.
struct gemm_kernels {
  gemm_loops f32_weights_f32;  ///< f32 arithmetic, f32 weights.
  gemm_loops f32_weights_bf16; ///< f32 arithmetic, bf16 weights.
  gemm_loops bf16;             ///< bf16 arithmetic by two FMAs.
  void (*epilogue)(const gemm_epilogue&);
};

/// bf16 arithmetic by `vdpbf16ps` (gemm_bf16_avx512.cpp); null where the compiler's target has no
/// such instruction. May be run only where `has_bf16_instruction()`.
const gemm_loops* bf16_instruction_loops() noexcept;

/// Whether the chosen instruction set includes AVX512-BF16 (dispatch.cpp).
bool has_bf16_instruction() noexcept;

// -- the packed layouts -------------------------------------------------------

/// k in pairs; an odd k is padded with a zero.
constexpr std::size_t pair_count(std::size_t k) noexcept {
  return (k + 1) / 2;
}

/// Bytes of one pair of k of one panel: f32 as [2][32], bf16 as [32][2].
constexpr std::size_t panel_pair_bytes(dtype type) noexcept {
  return 2 * panel_columns * size_of(type);
}

/// Bytes of one pair of k of one activation row: two f32 or two bf16.
constexpr std::size_t row_pair_bytes(arithmetic how) noexcept {
  return how == arithmetic::f32 ? 2 * sizeof(float) : 2 * sizeof(std::uint16_t);
}

/// Row tiles differ by one row at most, the taller first.
constexpr std::size_t tile_count(std::size_t rows) noexcept {
  return (rows + tile_rows_max - 1) / tile_rows_max;
}

/// First row of `tile`; `tile_count(rows)` gives `rows`.
constexpr std::size_t tile_begin(std::size_t rows, std::size_t tile) noexcept {
  const std::size_t tiles = tile_count(rows);
  if (tiles == 0)
    return 0;
  const std::size_t taller = rows % tiles;
  return tile * (rows / tiles) + (tile < taller ? tile : taller);
}

} // namespace rollcast::kernels::detail
