#pragma once

#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// How the rotary frequencies are scaled for long contexts.
enum class rope_scaling : std::uint8_t { none, linear, llama3, yarn };

struct rope_params {
  std::size_t head_dim = 0; ///< Dimensions that are rotated: even, first half with second (NeoX).
  double theta = 10000.0;
  rope_scaling scaling = rope_scaling::none;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position = 8192;
  // Of yarn alone.
  double beta_fast = 32.0;       ///< Frequencies that turn more often in the original are kept,
  double beta_slow = 1.0;        ///< those that turn less often are divided by `factor`.
  double attention_factor = 1.0; ///< Cosines and sines are multiplied by it.
};

/// Fills `cos_sin` ([positions, head_dim]: cos of the head_dim/2 frequencies, then their sin) for
/// positions [0, positions). Computed in double by house sincos, exp and log; stored as f32.
/// @param params  `head_dim` even, `theta` > 1, `factor` > 0; positions times frequency below 2^31.
/// Numerics: frequency i is exp(-2i / head_dim * log(theta)); one rounding to f32 at the end.
/// Source:   Su et al., RoFormer, arXiv:2104.09864; llama3 scaling as in transformers'
///           modeling_rope_utils.py, and so yarn (Peng et al., arXiv:2309.00071).
void rope_table(const rope_params& params, std::size_t positions, float* cos_sin);

/// Where one activation row's K and V go.
struct row_place {
  std::uint32_t position; ///< Absolute position in its sequence.
  std::uint32_t kv_block; ///< Physical block that holds that position.
};

/// One step between the qkv GEMM and attention, for rows of `qkv` ([rows, (heads + 2 * kv_heads) *
/// head_dim], q heads first, then k, then v):
///   q and k heads: optional RMSNorm over head_dim (Qwen3), then rotation of the first dimensions
///   (GLM: a half of them; else all) by the row's position;
///   q is written back in place; k and v are stored into the KV cache at the row's place.
struct qkv_rope_args {
  float* qkv;
  std::size_t qkv_stride;
  std::size_t heads;
  std::size_t kv_heads;
  const float* q_norm; ///< [head_dim] or null.
  const float* k_norm; ///< [head_dim] or null.
  float eps;
  const float* cos_sin; ///< From `rope_table`, covering every position.
  const row_place* places;
  kv_layout kv;
  std::size_t rotary_dim = 0; ///< What the table was made for; 0: head_dim.
};

/// Does rows [row_begin, row_end), each to a place of its own.
/// @param args `head_dim` and `rotary_dim` multiples of 16; the norms both given or each null on
/// its own. Numerics: norm as `rms_norm_cpu`; with c, s the cosine and sine of the position,
///           out1 = fma(x1, c, -(x2 * s)) and out2 = fma(x2, c, x1 * s), the inner product rounded;
///           K after rotation and V as they are, rounded once to nearest even bf16 if the cache is
///           bf16. A row is a function of itself, its position and the norms, bit for bit.
/// Cost:     one pass over the row; K is written with a stride of one kv group.
void qkv_rope_append_cpu(const qkv_rope_args& args, std::size_t row_begin,
                         std::size_t row_end) noexcept;

} // namespace rollcast::kernels
