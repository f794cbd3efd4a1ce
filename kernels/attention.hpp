#pragma once

#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// Keys of one attention tile. Tiles are cut at absolute positions 0, 64, 128, ...
inline constexpr std::size_t key_tile = 64;

/// The query rows of one sequence in this step: a decode row, or a run of prompt rows.
struct attention_sequence {
  const std::uint32_t* blocks; ///< Block table: logical block -> physical block.
  std::uint32_t row_begin;     ///< First of its rows in `q` and `out`.
  std::uint32_t rows;          ///< Consecutive positions, at least 1.
  std::uint32_t position;      ///< Absolute position of the first row.
};

/// A share of the work: some rows of one sequence against one kv head.
struct attention_item {
  std::uint32_t sequence;
  std::uint32_t kv_head;   ///< With `attention_args::shares`: kv head * shares + share.
  std::uint32_t row_begin; ///< Relative to the sequence's first row.
  std::uint32_t rows;
};

/// Upper bound of the items `plan_attention` writes for so many sequences of so many rows in all.
std::size_t attention_items_max(std::size_t sequences, std::size_t rows,
                                std::size_t kv_heads) noexcept;

/// Divides the work once per step, for all layers: one item per kv head for a decode row, and for
/// every 32 rows of a prompt; longest first. Speed only: no bit depends on it. Never allocates.
/// @returns the number of items written to `items`.
std::size_t plan_attention(const attention_sequence* sequences, std::size_t count,
                           std::size_t kv_heads, attention_item* items) noexcept;

struct attention_args {
  const float* q; ///< [rows, heads * head_dim], after norm and rotation.
  std::size_t q_stride;
  float* out; ///< [rows, heads * kv.value_dim()].
  std::size_t out_stride;
  std::size_t heads;
  float scale; ///< Usually head_dim^-0.5.
  kv_layout kv;
  const attention_sequence* sequences;
  /// The query heads of a kv head are divided into so many equal items. `plan_attention` is then
  /// asked for kv_heads * shares heads. Speed only.
  std::size_t shares = 1;
};

/// Causal attention of item `item` over keys 0 .. position of each row, whose K and V (the row's
/// own included) are already in the cache.
/// @param args `heads` a multiple of `kv.kv_heads * shares`; `head_dim` a multiple of 16;
///             `kv.latent_dim` at most `latent_dim_max`. `out` overlaps nothing; the item's part of
///             it is overwritten, and used as the accumulator.
/// Numerics: a score is one f32 FMA chain over d, ascending from +0, then times `scale`. Keys go in
///           tiles of `key_tile`, ascending, cut at absolute positions. Per tile, with s the scores
///           of the keys up to the row's position and m = -inf, l = 0, o = 0 before the first:
///               m' = max(m, max s);  alpha = exp_f32(m - m');  p_j = exp_f32(s_j - m')
///               l = fma(l, alpha, sum of p in the order of kernels/reduce_order.hpp)
///               o = o * alpha, then o = fma(p_j, v_j, o) for each j, ascending
///           and at the end out = o / l. bf16 keys and values are widened exactly. A row is a
///           function of its q and of the keys and values up to its position, bit for bit: not of
///           the item, chunk, block size or block table (tests/unit/kernels/attention_test.cpp).
///           Slots behind the row's position may hold anything, NaN too; blocks that hold no
///           position up to it are not looked up. Scores must be finite, or the row is NaN.
/// Cost:     decode reads each K and V once for all heads of the group and runs at the speed of
///           memory; prefill at the speed of FMA.
/// Source:   Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867.
void attention_cpu(const attention_args& args, const attention_item& item) noexcept;

} // namespace rollcast::kernels
