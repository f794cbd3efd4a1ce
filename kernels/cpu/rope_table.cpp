#include "kernels/numerics.hpp"
#include "kernels/rope.hpp"

#include <algorithm>
#include <cmath>

namespace rollcast::kernels {
namespace {

/// Llama 3.1's scaling: long waves are stretched by `factor`, short ones kept, those between blend.
/// Source: Llama 3.1 reference code; transformers, modeling_rope_utils.py.
double llama3_frequency(const rope_params& params, double frequency) noexcept {
  constexpr double two_pi = 6.283185307179586476925;
  const double wavelength = two_pi / frequency;
  if (wavelength < params.original_max_position / params.high_freq_factor)
    return frequency;
  if (wavelength > params.original_max_position / params.low_freq_factor)
    return frequency / params.factor;
  const double smooth = (params.original_max_position / wavelength - params.low_freq_factor)
                        / (params.high_freq_factor - params.low_freq_factor);
  return (1.0 - smooth) * frequency / params.factor + smooth * frequency;
}

/// The dimension whose wave turns `turns` times within the original context.
double yarn_dimension(const rope_params& params, double turns) noexcept {
  constexpr double two_pi = 6.283185307179586476925;
  return static_cast<double>(params.head_dim)
         * log_f64(params.original_max_position / (turns * two_pi)) / (2.0 * log_f64(params.theta));
}

/// Short waves are kept, long ones stretched by `factor`, those between blend by their number.
/// Source: transformers, modeling_rope_utils.py.
double yarn_frequency(const rope_params& params, std::size_t i, double frequency) noexcept {
  const double last = static_cast<double>(params.head_dim) - 1.0;
  const double low = std::max(std::floor(yarn_dimension(params, params.beta_fast)), 0.0);
  double high = std::min(std::ceil(yarn_dimension(params, params.beta_slow)), last);
  if (low == high)
    high += 0.001;
  const double ramp = (static_cast<double>(i) - low) / (high - low);
  const double stretched = std::min(std::max(ramp, 0.0), 1.0);
  return frequency / params.factor * stretched + frequency * (1.0 - stretched);
}

double frequency_of(const rope_params& params, std::size_t i) noexcept {
  const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(params.head_dim);
  const double frequency = exp_f64(-exponent * log_f64(params.theta));
  switch (params.scaling) {
    case rope_scaling::none: return frequency;
    case rope_scaling::linear: return frequency / params.factor;
    case rope_scaling::llama3: return llama3_frequency(params, frequency);
    case rope_scaling::yarn: return yarn_frequency(params, i, frequency);
  }
  return frequency;
}

} // namespace

void rope_table(const rope_params& params, std::size_t positions, float* cos_sin) {
  const std::size_t half = params.head_dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const double frequency = frequency_of(params, i);
    for (std::size_t p = 0; p < positions; ++p) {
      const auto [sine, cosine] = sin_cos_f64(static_cast<double>(p) * frequency);
      // The factor is 1 but for yarn, and then multiplying changes no bit.
      cos_sin[p * params.head_dim + i] = static_cast<float>(cosine * params.attention_factor);
      cos_sin[p * params.head_dim + half + i] = static_cast<float>(sine * params.attention_factor);
    }
  }
}

} // namespace rollcast::kernels
