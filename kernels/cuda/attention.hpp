#pragma once

#include "kernels/attention.hpp"
#include "kernels/cuda/gemm.hpp"
#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace rollcast::kernels::cuda {

/// Keys of one split, cut at absolute positions 0, 512, 1024, ...: part of the numerics.
inline constexpr std::size_t attention_split = 512;

/// Rows of one item: positions times heads of a kv head.
inline constexpr std::size_t attention_tile_rows = 64;

/// A share of the work: some rows of one sequence over some splits of its keys, for every kv head.
/// One of `rows` 0 is neutral.
struct attention_item {
  std::uint32_t sequence;
  std::uint32_t row_begin;   ///< Relative to the sequence's first row.
  std::uint32_t rows;        ///< Positions; times heads of a kv head at most 64.
  std::uint32_t split_begin; ///< First split that it does ...
  std::uint32_t split_end;   ///< ... and the one after its last.
  std::uint32_t splits;      ///< Of these rows in all; if it does not do all, a partial result.
  std::uint32_t partial;     ///< First row of the partial results of these rows.
  std::uint32_t group;       ///< Counter of these rows' items.
};

/// What a plan takes of the device.
struct attention_plan_size {
  std::size_t items = 0;
  std::size_t partial_rows = 0; ///< Rows of partial results, over all splits.
  std::size_t groups = 0;       ///< Counters for each kv head.
};

/// Upper bounds for every step of up to so many sequences and rows, with positions below
/// `positions_max`. `partial_rows_max` is the caller's bound, in rows (of all heads), of the memory
/// for partial results; more of it lets more sequences have their splits done side by side.
attention_plan_size attention_plan_bound(std::size_t sequences_max, std::size_t rows_max,
                                         std::size_t positions_max, std::size_t heads_per_kv,
                                         std::size_t partial_rows_max) noexcept;

/// Divides the work once per step, for all layers. Speed only: no bit depends on it. Sequences
/// whose rows fit one tile have their splits done side by side while `partial_rows_max` lasts; the
/// rows of a prompt walk theirs. Host code; `sequences[].blocks` is not read.
attention_plan_size plan_attention(std::span<const attention_sequence> sequences,
                                   std::size_t heads_per_kv, std::size_t partial_rows_max,
                                   std::vector<attention_item>& items);

struct attention_args {
  const bf16_bits* q = nullptr; ///< [rows, heads * head_dim], after norm and rotation.
  std::size_t q_stride = 0;     ///< A multiple of 8.
  bf16_bits* out = nullptr;     ///< [rows, heads * head_dim].
  std::size_t out_stride = 0;
  std::size_t heads = 0; ///< A multiple of `kv.kv_heads`; at most 64 times it.
  float scale = 0;       ///< Usually head_dim^-0.5.
  kv_layout kv;          ///< bf16; head_dim 64 or 128; `data` of the device.
  const attention_sequence* sequences = nullptr; ///< Of the device, `blocks` too.
  const attention_item* items = nullptr;         ///< Of the device.
  const std::uint32_t* item_count = nullptr;     ///< Of the device: read when the kernel runs.
  std::size_t items_max = 0;                     ///< At least what `item_count` will hold.
  float* partials = nullptr;         ///< `attention_partial_bytes`; contents do not matter.
  std::uint32_t* counters = nullptr; ///< [groups * kv_heads], zero before the first use; left zero.
};

/// Bytes of `partials`.
std::size_t attention_partial_bytes(std::size_t partial_rows, std::size_t heads,
                                    std::size_t head_dim) noexcept;

/// Queues causal attention of all items over keys 0 .. position of each row, whose K and V (the
/// row's own included) are in the cache. Fails if a shape is not as above, or the launch fails.
/// Numerics: bf16 inputs, f32 inside. A score is one mma chain over d, ascending, from +0, then one
///           multiplication by `scale`. Splits of 512 keys, and in them tiles of 64, ascending, cut
///           at absolute positions; a split starts with m = -inf, l = 0, o = 0. Per tile:
///               m' = max(m, max s);  alpha = exp_f32(m - m');  p_j = bf16(exp_f32(s_j - m'))
///               l = l * alpha, then one mma chain over j of p_j * 1
///               o = o * alpha, then one mma chain over j of p_j * v_j
///           Splits merge ascending, from those of split 0: with a = exp_f32(m - max(m, m_s)) and
///           b = exp_f32(m_s - max(m, m_s)),  l = fma(l, a, l_s * b),  o = fma(o, a, o_s * b).
///           out = bf16(o / l). Prefill, chunks, decode and verification are this one arithmetic: a
///           row is a function of its q and of the keys and values up to its position, bit for bit,
///           not of the item, chunk, block size or block table
///           (tests/unit/cuda/attention_test.cpp). Slots behind the last row of an item may hold
///           anything, NaN too. Values of a later row of the same item must be finite; scores must
///           be.
device_status attend(const attention_args& args, stream_handle stream);

} // namespace rollcast::kernels::cuda
