#pragma once

#include <cstddef>

namespace rollcast::kernels {

/// Shapes: `x` and `y` are [rows, dim], `w` is [dim]. Strides count elements.
struct rms_norm_args {
  const float* x;
  const float* w;
  float* y;
  std::size_t dim;
  std::size_t x_stride;
  std::size_t y_stride;
  float eps;
};

/// Divides each row by its root mean square and scales it by `w`:
///     y[r, d] = x[r, d] / sqrt(mean_d(x[r, d]^2) + eps) * w[d]
/// @param args `dim` > 0, `eps` > 0; `y` may be `x`.
/// Numerics: f32; the sum of squares in the order of kernels/reduce_order.hpp, then true division,
///           root and division, one rounding each. Row `r` of the result is a function of
///           (x[r], w, eps) alone, bit for bit (tests/unit/kernels/row_kernels_test.cpp).
/// Cost:     reads 2 and writes 1 element per output, the second read from L1.
/// Source:   Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467, section 4.
void rms_norm_cpu(const rms_norm_args& args, std::size_t row_begin, std::size_t row_end) noexcept;

} // namespace rollcast::kernels
