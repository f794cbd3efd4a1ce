#include "kernels/numerics.hpp"

#include <bit>

namespace rollcast::kernels {

float exp_f32(float x) noexcept {
  using namespace exp_f32_constants;
  const float biased = std::fma(x, log2_e, round_bias);
  const float n = biased - round_bias;
  const float r = std::fma(-n, ln2_low, std::fma(-n, ln2_high, x));
  float p = poly[0];
  for (int i = 1; i < 6; ++i)
    p = std::fma(p, r, poly[i]);
  const float y = std::fma(p, r * r, r) + 1.0f;
  // The low nine bits of `biased` are n, and land in the exponent.
  const auto bits = std::bit_cast<std::uint32_t>(y) + (std::bit_cast<std::uint32_t>(biased) << 23);
  if (x < x_min)
    return 0.0f;
  return x <= x_max ? std::bit_cast<float>(bits) : x + std::numeric_limits<float>::infinity();
}

double exp_f64(double x) noexcept {
  if (!(x >= -700.0))
    return x < -700.0 ? 0.0 : x;
  if (x > 700.0)
    return std::numeric_limits<double>::infinity();
  constexpr double round_bias = 0x1.8p+52;
  const double n = (x * 1.44269504088896338700e+00 + round_bias) - round_bias;
  const double high = x - n * 6.93147180369123816490e-01; // Exact: the factor has 32 bits.
  const double low = n * 1.90821492927058770002e-10;
  const double r = high - low;
  const double t = r * r;
  const double c =
    r
    - t
        * (1.66666666666666019037e-01
           + t
               * (-2.77777777770155933842e-03
                  + t
                      * (6.61375632143793436117e-05
                         + t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))));
  const double y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
  return std::bit_cast<double>(std::bit_cast<std::int64_t>(y)
                               + (static_cast<std::int64_t>(n) << 52));
}

double log_f64(double x) noexcept {
  if (!(x > 0.0))
    return x == 0.0 ? -std::numeric_limits<double>::infinity()
                    : std::numeric_limits<double>::quiet_NaN();
  if (x == std::numeric_limits<double>::infinity())
    return x;
  // x = 2^k * m with m in [sqrt(1/2), sqrt(2)): adding 0x95f64 carries into the exponent above it.
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const std::uint64_t fraction = (bits >> 32) & 0xfffffu;
  const std::uint64_t carry = (fraction + 0x95f64u) & 0x100000u;
  const auto k = static_cast<double>(static_cast<std::int64_t>(bits >> 52) - 1023
                                     + static_cast<std::int64_t>(carry >> 20));
  const std::uint64_t exponent = (carry ^ 0x3ff00000u) << 32;
  const double f = std::bit_cast<double>((bits & 0xfffffffffffffu) | exponent) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  const double even =
    w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z
                     * (6.666666666666735130e-01
                        + w
                            * (2.857142874366239149e-01
                               + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double half_square = 0.5 * f * f;
  const double tail = s * (half_square + (odd + even));
  return k * 6.93147180369123816490e-01
         - ((half_square - (tail + k * 1.90821492927058770002e-10)) - f);
}

sin_cos sin_cos_f64(double x) noexcept {
  constexpr double round_bias = 0x1.8p+52;
  const double n = (x * 0x1.45f306dc9c883p-1 + round_bias) - round_bias;
  const double r = std::fma(-n, 0x1.1a62633145c07p-54, std::fma(-n, 0x1.921fb54442d18p+0, x));
  const double z = r * r;
  const double sine = r
                      + r * z
                          * (-1.66666666666666324348e-01
                             + z
                                 * (8.33333333332248946124e-03
                                    + z
                                        * (-1.98412698298579493134e-04
                                           + z
                                               * (2.75573137070700676789e-06
                                                  + z
                                                      * (-2.50507602534068634195e-08
                                                         + z * 1.58969099521155010221e-10)))));
  const double cosine = (1.0 - 0.5 * z)
                        + z * z
                            * (4.16666666666666019037e-02
                               + z
                                   * (-1.38888888888741095749e-03
                                      + z
                                          * (2.48015872894767294178e-05
                                             + z
                                                 * (-2.75573143513906633035e-07
                                                    + z
                                                        * (2.08757232129817482790e-09
                                                           + z * -1.13596475577881948265e-11)))));
  switch (static_cast<std::int64_t>(n) & 3) {
    case 0: return {sine, cosine};
    case 1: return {cosine, -sine};
    case 2: return {-sine, -cosine};
    default: return {-cosine, sine};
  }
}

philox_block philox(std::uint64_t key, philox_block c) noexcept {
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53u} * c.word[0];
    const std::uint64_t b = std::uint64_t{0xcd9e8d57u} * c.word[2];
    c = {{static_cast<std::uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(b),
          static_cast<std::uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return c;
}

std::uint32_t token_bits(std::uint64_t seed, std::uint32_t position, std::uint32_t token) noexcept {
  return philox(seed, {{token / 4, position, 0, 0}}).word[token % 4];
}

double gumbel(std::uint32_t bits) noexcept {
  const double u = 1.0 - (static_cast<double>(bits) + 0.5) * 0x1p-32;
  return -log_f64(-log_f64(u));
}

std::uint64_t fixed_weight(float w) noexcept {
  const double shifted = static_cast<double>(w) * 0x1p+40 + 0x1p+52;
  return std::bit_cast<std::uint64_t>(shifted) - std::bit_cast<std::uint64_t>(0x1p+52);
}

} // namespace rollcast::kernels
