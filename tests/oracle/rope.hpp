#pragma once

#include "kernels/rope.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

namespace rollcast::oracle {

/// The rotary frequency of pair `i`, with long double and libm.
inline long double rope_frequency(const kernels::rope_params& p, std::size_t i) {
  const long double exponent =
    -2.0L * static_cast<long double>(i) / static_cast<long double>(p.head_dim);
  const long double f = std::pow(static_cast<long double>(p.theta), exponent);
  if (p.scaling == kernels::rope_scaling::linear)
    return f / static_cast<long double>(p.factor);
  if (p.scaling == kernels::rope_scaling::none)
    return f;
  if (p.scaling == kernels::rope_scaling::yarn) {
    const auto dimension = [&](double turns) {
      const long double waves =
        p.original_max_position / (turns * 2.0L * std::numbers::pi_v<long double>);
      return static_cast<long double>(p.head_dim) * std::log(waves)
             / (2.0L * std::log(static_cast<long double>(p.theta)));
    };
    const long double low = std::max(0.0L, std::floor(dimension(p.beta_fast)));
    const long double high =
      std::min(static_cast<long double>(p.head_dim) - 1.0L, std::ceil(dimension(p.beta_slow)));
    const long double ramp =
      std::clamp((static_cast<long double>(i) - low) / (high - low), 0.0L, 1.0L);
    return f / static_cast<long double>(p.factor) * ramp + f * (1 - ramp);
  }
  const long double wavelength = 2.0L * std::numbers::pi_v<long double> / f;
  const long double low = p.original_max_position / p.low_freq_factor;
  const long double high = p.original_max_position / p.high_freq_factor;
  if (wavelength < high)
    return f;
  if (wavelength > low)
    return f / static_cast<long double>(p.factor);
  const long double smooth = (p.original_max_position / wavelength - p.low_freq_factor)
                             / (p.high_freq_factor - p.low_freq_factor);
  return (1 - smooth) * f / static_cast<long double>(p.factor) + smooth * f;
}

/// The rotation of one head at a position, first half with second half, in double.
inline std::vector<double> rotate(const std::vector<double>& x, const kernels::rope_params& p,
                                  std::size_t position) {
  const std::size_t half = x.size() / 2;
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < half; ++i) {
    const long double angle = static_cast<long double>(position) * rope_frequency(p, i);
    const auto c = static_cast<double>(std::cos(angle)), s = static_cast<double>(std::sin(angle));
    y[i] = x[i] * c - x[half + i] * s;
    y[half + i] = x[half + i] * c + x[i] * s;
  }
  return y;
}

} // namespace rollcast::oracle
