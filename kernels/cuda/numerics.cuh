#pragma once

// The house transcendentals and noise of kernels/numerics.hpp, operation by operation, for kernels.
// Bits equal the CPU's: tests/unit/cuda/numerics_test.cpp sweeps them in the emulator.

#include "kernels/cuda/simt.cuh"
#include "kernels/numerics.hpp"

#include <cstdint>

namespace rollcast::kernels::cuda {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
inline constexpr float largest_float = std::numeric_limits<float>::max();

/// Twin of `kernels::exp_f32`.
ROLLCAST_DEVICE float exp_f32(float x) {
  namespace c = exp_f32_constants;
  constexpr float p0 = c::poly[0], p1 = c::poly[1], p2 = c::poly[2];
  constexpr float p3 = c::poly[3], p4 = c::poly[4], p5 = c::poly[5];
  const float biased = simt::fused(x, c::log2_e, c::round_bias);
  const float n = biased - c::round_bias;
  const float r = simt::fused(-n, c::ln2_low, simt::fused(-n, c::ln2_high, x));
  float p = simt::fused(p0, r, p1);
  p = simt::fused(p, r, p2);
  p = simt::fused(p, r, p3);
  p = simt::fused(p, r, p4);
  p = simt::fused(p, r, p5);
  const float y = simt::fused(p, r * r, r) + 1.0f;
  const std::uint32_t scaled = simt::bits(y) + (simt::bits(biased) << 23);
  if (x < c::x_min)
    return 0.0f;
  return x <= c::x_max ? simt::from_bits(scaled) : x + std::numeric_limits<float>::infinity();
}

/// Twin of `kernels::exp_f64`.
ROLLCAST_DEVICE double exp_f64(double x) {
  if (!(x >= -700.0))
    return x < -700.0 ? 0.0 : x;
  if (x > 700.0)
    return std::numeric_limits<double>::infinity();
  constexpr double round_bias = 0x1.8p+52;
  const double n = (x * 1.44269504088896338700e+00 + round_bias) - round_bias;
  const double high = x - n * 6.93147180369123816490e-01;
  const double low = n * 1.90821492927058770002e-10;
  const double r = high - low;
  const double t = r * r;
  double poly = -1.65339022054652515390e-06 + t * 4.13813679705723846039e-08;
  poly = 6.61375632143793436117e-05 + t * poly;
  poly = -2.77777777770155933842e-03 + t * poly;
  poly = 1.66666666666666019037e-01 + t * poly;
  const double c = r - t * poly;
  const double y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
  return simt::from_bits(simt::bits(y)
                         + (static_cast<std::uint64_t>(static_cast<std::int64_t>(n)) << 52));
}

/// Twin of `kernels::log_f64`.
ROLLCAST_DEVICE double log_f64(double x) {
  if (!(x > 0.0))
    return x == 0.0 ? -std::numeric_limits<double>::infinity()
                    : std::numeric_limits<double>::quiet_NaN();
  if (x == std::numeric_limits<double>::infinity())
    return x;
  const std::uint64_t word = simt::bits(x);
  const std::uint64_t fraction = (word >> 32) & 0xfffffu;
  const std::uint64_t carry = (fraction + 0x95f64u) & 0x100000u;
  const auto k = static_cast<double>(static_cast<std::int64_t>(word >> 52) - 1023
                                     + static_cast<std::int64_t>(carry >> 20));
  const std::uint64_t exponent = (carry ^ 0x3ff00000u) << 32;
  const double f = simt::from_bits((word & 0xfffffffffffffu) | exponent) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  double even = 2.222219843214978396e-01 + w * 1.531383769920937332e-01;
  even = w * (3.999999999940941908e-01 + w * even);
  double odd = 1.818357216161805012e-01 + w * 1.479819860510658591e-01;
  odd = 2.857142874366239149e-01 + w * odd;
  odd = z * (6.666666666666735130e-01 + w * odd);
  const double half_square = 0.5 * f * f;
  const double tail = s * (half_square + (odd + even));
  return k * 6.93147180369123816490e-01
         - ((half_square - (tail + k * 1.90821492927058770002e-10)) - f);
}

/// Twin of `kernels::philox`: the four words of counter (token / 4, position, 0, 0).
struct noise_words {
  std::uint32_t word[4];
};
ROLLCAST_DEVICE noise_words philox_words(std::uint64_t key, std::uint32_t counter,
                                         std::uint32_t position) {
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t c0 = counter, c1 = position, c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53u} * c0;
    const std::uint64_t b = std::uint64_t{0xcd9e8d57u} * c2;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(b);
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(a);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Twin of `kernels::gumbel`.
ROLLCAST_DEVICE double gumbel(std::uint32_t bits) {
  const double u = 1.0 - (static_cast<double>(bits) + 0.5) * 0x1p-32;
  return -log_f64(-log_f64(u));
}

/// Twin of `kernels::fixed_weight`.
ROLLCAST_DEVICE std::uint64_t fixed_weight(float w) {
  return simt::bits(static_cast<double>(w) * 0x1p+40 + 0x1p+52) - 0x4330000000000000u;
}

/// Folds the 64 lanes of kernels/reduce_order.hpp, of which each lane of the warp holds `low` (its
/// own) and `high` (its own + 32). Every lane gets the sum.
ROLLCAST_DEVICE float fold_64(float low, float high) {
  float sum = low + high;
#pragma unroll
  for (unsigned half = 16; half > 0; half /= 2)
    sum = sum + simt::shuffle_xor(sum, half);
  return sum;
}

} // namespace rollcast::kernels::cuda
