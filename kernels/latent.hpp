#pragma once

#include "kernels/kv_layout.hpp"
#include "kernels/rope.hpp"

#include <cstddef>

namespace rollcast::kernels {

/// One step of latent attention between its projections and the cache, for rows of
///   q   [rows, heads * (nope + rope)]: each head's plain part, then the part to rotate;
///   kv  [rows, latent + rope]: the latent of keys and values, then the one rotated key.
/// The rotated part of each q head goes behind its place for the latent in `q_latent`; the latent
/// is normalised, the key rotated, and both are stored as the row's key.
struct latent_append_args {
  const float* q;
  std::size_t q_stride;
  const float* kv_rows; ///< `kv` above.
  std::size_t kv_stride;
  std::size_t heads;
  std::size_t nope;     ///< Dimensions of a q head that are not rotated.
  std::size_t rope;     ///< Dimensions that are; a multiple of 16.
  const float* kv_norm; ///< [latent].
  float eps;
  const float* cos_sin; ///< From `rope_table` for `rope` dimensions, covering every position.
  const row_place* places;
  float* q_latent; ///< [rows, heads * kv.head_dim].
  kv_layout kv;    ///< One kv head; head_dim = latent_dim + rope, latent_dim <= latent_dim_max.
};

/// Does rows [row_begin, row_end), each to a place of its own.
/// Numerics: norm as `rms_norm_cpu`; pairs (2i, 2i + 1) are rotated by frequency i with the
/// formulas
///           of `qkv_rope_append_cpu`; the key rounded once to nearest even bf16 if the cache is
///           bf16. A row is a function of itself, its position and the norm, bit for bit.
/// Source:   DeepSeek-V2, arXiv:2405.04434, section 2.1.
void latent_append_cpu(const latent_append_args& args, std::size_t row_begin,
                       std::size_t row_end) noexcept;

} // namespace rollcast::kernels
