#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace rollcast::oracle {

/// x / sqrt(mean(x^2) + eps) * w in double.
inline std::vector<double> rms_norm(const float* x, const float* w, std::size_t dim, double eps) {
  double sum = 0;
  for (std::size_t d = 0; d < dim; ++d)
    sum += static_cast<double>(x[d]) * static_cast<double>(x[d]);
  const double root = std::sqrt(sum / static_cast<double>(dim) + eps);
  std::vector<double> y(dim);
  for (std::size_t d = 0; d < dim; ++d)
    y[d] = static_cast<double>(x[d]) / root * static_cast<double>(w[d]);
  return y;
}

/// silu(gate) * up in double.
inline double silu_mul(float gate, float up) {
  const auto g = static_cast<double>(gate);
  return g / (1.0 + std::exp(-g)) * static_cast<double>(up);
}

} // namespace rollcast::oracle
