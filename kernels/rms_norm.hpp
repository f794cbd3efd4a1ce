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
void rms_norm_cpu(const rms_norm_args& args, std::size_t row_begin, std::size_t row_end) noexcept;

} // namespace rollcast::kernels
