#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace rollcast::kernels {

/// The house transcendentals. No result of a kernel goes through libm's: they differ by version.
/// Every operation here is IEEE (add, multiply, divide, fma), so the bits are the same everywhere,
/// as long as the compiler does not contract (-ffp-contract=off).

// -- single precision ---------------------------------------------------------

/// Constants of `exp_f32`, shared with its vector form in kernels/cpu/numerics-inl.hpp.
namespace exp_f32_constants {
inline constexpr float log2_e = 0x1.715476p+0f;
inline constexpr float round_bias = 0x1.8p+23f; ///< Adding it rounds to an integer, nearest even.
inline constexpr float ln2_high = 0x1.62e43p-1f;
inline constexpr float ln2_low = -0x1.05c61p-29f;
inline constexpr float x_min = -0x1.5d589ep+6f; ///< Below it exp(x) < 2^-126 and is flushed to +0.
inline constexpr float x_max = 0x1.62e42ep+6f;  ///< Above it exp(x) overflows to +inf.
/// exp(r) = 1 + r + r^2 * P(r), highest power first. Source: Cephes 2.8, single/expf.c.
inline constexpr float poly[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
} // namespace exp_f32_constants

/// e^x in f32. exp(+-0) = 1; exp(-inf) = +0; results that would be subnormal are +0; NaN stays NaN.
/// Numerics: at most 1 ulp from the true value (tests/unit/kernels/numerics_test.cpp sweeps it).
/// The
///           vector form in every kernel gives these bits.
float exp_f32(float x) noexcept;

// -- double precision ---------------------------------------------------------

/// e^x, within 1 ulp, for |x| <= 700; +0 below and +inf above. NaN stays NaN.
/// Source: fdlibm 5.3, e_exp.c.
double exp_f64(double x) noexcept;

/// Natural logarithm, within 1 ulp, of a positive normal x; -inf for 0, NaN below 0.
/// Source: fdlibm 5.3, e_log.c.
double log_f64(double x) noexcept;

struct sin_cos {
  double sin;
  double cos;
};

/// Sine and cosine, within 4e-16 absolute, for |x| <= 2^31.
/// Source: fdlibm 5.3, k_sin.c and k_cos.c; reduction by pi/2 in two parts with fma.
sin_cos sin_cos_f64(double x) noexcept;

// -- noise --------------------------------------------------------------------

struct philox_block {
  std::uint32_t word[4];
};

/// Philox4x32-10: four random words of a 64-bit key and a 128-bit counter.
/// Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
philox_block philox(std::uint64_t key, philox_block counter) noexcept;

/// The random word of a token: word `token % 4` of Philox at counter (token / 4, position, 0, 0).
std::uint32_t token_bits(std::uint64_t seed, std::uint32_t position, std::uint32_t token) noexcept;

/// Standard Gumbel noise of a random word: -log(-log(u)), u = 1 - (bits + 1/2) * 2^-32, in double.
/// u is exact and never 0 or 1, and small `bits` (the tail that wins) keep full resolution. The
/// result decreases in `bits` and lies in (-3.2, 22.9).
double gumbel(std::uint32_t bits) noexcept;

/// Fixed-point weights: round(w * 2^40), nearest even, for 0 <= w <= 1. Sums of up to 2^22 of them
/// are exact in 64 bits, so no order of summation, lane or thread count can change a softmax sum.
std::uint64_t fixed_weight(float w) noexcept;

/// What one unit of `fixed_weight` stands for.
inline constexpr double fixed_weight_unit = 0x1p-40;

} // namespace rollcast::kernels
