#pragma once

#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// How the rotary frequencies are scaled for long contexts.
enum class rope_scaling : std::uint8_t { none, linear, llama3 };

struct rope_params {
  std::size_t head_dim = 0; ///< Even; all of it is rotated, first half with second half (NeoX).
  double theta = 10000.0;
  rope_scaling scaling = rope_scaling::none;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position = 8192;
};

/// Fills `cos_sin` ([positions, head_dim]: cos of the head_dim/2 frequencies, then their sin) for
/// positions [0, positions). Computed in double by house sincos, exp and log; stored as f32.
void rope_table(const rope_params& params, std::size_t positions, float* cos_sin);

/// Where one activation row's K and V go.
struct row_place {
  std::uint32_t position; ///< Absolute position in its sequence.
  std::uint32_t kv_block; ///< Physical block that holds that position.
};

/// One step between the qkv GEMM and attention, for rows of `qkv` ([rows, (heads + 2 * kv_heads) *
/// head_dim], q heads first, then k, then v):
///   q and k heads: optional RMSNorm over head_dim (Qwen3), then rotation by the row's position;
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
};

void qkv_rope_append_cpu(const qkv_rope_args& args, std::size_t row_begin,
                         std::size_t row_end) noexcept;

} // namespace rollcast::kernels
