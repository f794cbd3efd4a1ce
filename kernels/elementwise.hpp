#pragma once

#include "kernels/types.hpp"

#include <cstddef>

namespace rollcast::kernels {

/// out[r, d] = silu(gate_up[r, d]) * gate_up[r, dim + d], with silu(x) = x / (1 + exp(-x)).
struct silu_mul_args {
  const float* gate_up; ///< [rows, 2 * dim].
  std::size_t gate_up_stride;
  float* out; ///< [rows, dim].
  std::size_t out_stride;
  std::size_t dim;
};

/// Computes rows [row_begin, row_end). `out` may not overlap `gate_up`.
/// Numerics: f32: exp by `exp_f32`, true division, one rounding an operation; silu(-inf) is NaN.
/// Cost:     reads 2 and writes 1 element per output; one exp and one division each.
void silu_mul_cpu(const silu_mul_args& args, std::size_t row_begin, std::size_t row_end) noexcept;

/// Widens one checkpoint row of `dim` elements into `out`, exactly. `source` may be unaligned.
void widen_row_cpu(const void* source, dtype source_type, std::size_t dim, float* out) noexcept;

} // namespace rollcast::kernels
