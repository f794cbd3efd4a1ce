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
  std::uint32_t kv_head;
  std::uint32_t row_begin; ///< Relative to the sequence's first row.
  std::uint32_t rows;
};

/// Upper bound of the items `plan_attention` writes.
std::size_t attention_items_max(std::size_t sequences, std::size_t rows,
                                std::size_t kv_heads) noexcept;

/// Divides the work once per step, for all layers. Speed only: no bit depends on it.
/// @returns the number of items written to `items`.
std::size_t plan_attention(const attention_sequence* sequences, std::size_t count,
                           std::size_t kv_heads, attention_item* items) noexcept;

struct attention_args {
  const float* q; ///< [rows, heads * head_dim], after norm and rotation.
  std::size_t q_stride;
  float* out; ///< [rows, heads * head_dim].
  std::size_t out_stride;
  std::size_t heads;
  float scale; ///< Usually head_dim^-0.5.
  kv_layout kv;
  const attention_sequence* sequences;
};

/// Causal attention of item `item` over keys 0 .. position of each row, whose K and V (the row's
/// own included) are already in the cache. Reads no key or value past the row's position.
void attention_cpu(const attention_args& args, const attention_item& item) noexcept;

} // namespace rollcast::kernels
