// Goal: the house transcendentals are as exact as their headers say, everywhere, and Philox is
// Philox.
// Method: sweeps against libm in double or long double, edge cases by hand, Random123's known
// answers.
#include "engine/base/prng.hpp"
#include "kernels/numerics.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace rollcast::test {
namespace {

using namespace kernels;

constexpr float inf = std::numeric_limits<float>::infinity();

/// Distance of `got` from `want` in units in the last place of `got`'s type.
template <class T, class Wide>
double ulps(T got, Wide want) {
  const auto rounded = static_cast<T>(want);
  const auto ulp =
    std::nextafter(std::abs(rounded), std::numeric_limits<T>::infinity()) - std::abs(rounded);
  return static_cast<double>(std::abs(static_cast<Wide>(got) - want) / static_cast<Wide>(ulp));
}

TEST(exp_f32, is_within_its_bound_of_the_true_value) {
  double worst = 0;
  for (std::uint32_t bits = 0; bits < 0x42b17217u; bits += 257) { // up to 88.72
    const auto x = std::bit_cast<float>(bits);
    worst = std::max(worst, ulps(exp_f32(x), std::exp(static_cast<double>(x))));
    if (-x >= exp_f32_constants::x_min)
      worst = std::max(worst, ulps(exp_f32(-x), std::exp(static_cast<double>(-x))));
  }
  EXPECT_LT(worst, 1.1);
}

TEST(exp_f32, has_the_stated_edges) {
  EXPECT_EQ(1.0f, exp_f32(0.0f));
  EXPECT_EQ(1.0f, exp_f32(-0.0f));
  EXPECT_EQ(0u, std::bit_cast<std::uint32_t>(exp_f32(-inf)));
  EXPECT_EQ(inf, exp_f32(inf));
  EXPECT_TRUE(std::isnan(exp_f32(std::bit_cast<float>(0x7fc00001u))));
  EXPECT_TRUE(std::isnan(exp_f32(std::bit_cast<float>(0xff800001u))));
  const float least = exp_f32_constants::x_min, most = exp_f32_constants::x_max;
  EXPECT_GE(exp_f32(least), std::numeric_limits<float>::min());
  EXPECT_EQ(0u, std::bit_cast<std::uint32_t>(exp_f32(std::nextafter(least, -inf))));
  EXPECT_LT(std::exp(static_cast<double>(std::nextafter(least, -inf))), 0x1p-126);
  EXPECT_LT(exp_f32(most), inf);
  EXPECT_EQ(inf, exp_f32(std::nextafter(most, inf)));
  EXPECT_GT(std::exp(static_cast<double>(std::nextafter(most, inf))),
            static_cast<double>(std::numeric_limits<float>::max()));
  EXPECT_EQ(0.0f, exp_f32(-1e30f));
  EXPECT_EQ(inf, exp_f32(1e30f));
}

TEST(exp_f64, is_within_one_ulp_of_the_true_value) {
  double worst = 0;
  for (double x = -700.0; x <= 700.0; x += 0.00713)
    worst = std::max(worst, ulps(exp_f64(x), std::exp(static_cast<long double>(x))));
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(1.0, exp_f64(0.0));
  EXPECT_EQ(0.0, exp_f64(-701.0));
  EXPECT_EQ(0.0, exp_f64(-INFINITY));
  EXPECT_EQ(INFINITY, exp_f64(701.0));
  EXPECT_TRUE(std::isnan(exp_f64(std::nan(""))));
}

TEST(log_f64, is_within_one_ulp_of_the_true_value) {
  double worst = 0;
  prng random{1};
  for (int i = 0; i < 500'000; ++i) {
    const double u = static_cast<double>(random.next() >> 11) * 0x1p-53 + 0x1p-60;
    for (const double x : {u, 1.0 - u * 0.3, 1.0 + u, u * 1e300, u * 1e-280})
      worst = std::max(worst, ulps(log_f64(x), std::log(static_cast<long double>(x))));
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(0.0, log_f64(1.0));
  EXPECT_EQ(-INFINITY, log_f64(0.0));
  EXPECT_EQ(INFINITY, log_f64(INFINITY));
  EXPECT_TRUE(std::isnan(log_f64(-1.0)));
  EXPECT_TRUE(std::isnan(log_f64(std::nan(""))));
}

TEST(sin_cos_f64, is_within_its_bound_over_the_whole_range) {
  double worst = 0;
  prng random{2};
  for (int i = 0; i < 300'000; ++i) {
    const double u = static_cast<double>(random.next() >> 11) * 0x1p-53;
    for (const double x : {u, -u, u * 100, u * 1e6, std::floor(u * 1e6), u * 0x1p31}) {
      const auto [s, c] = sin_cos_f64(x);
      const auto wide = static_cast<long double>(x);
      worst = std::max(worst, static_cast<double>(std::abs(s - std::sin(wide))));
      worst = std::max(worst, static_cast<double>(std::abs(c - std::cos(wide))));
    }
  }
  EXPECT_LT(worst, 4e-16);
  EXPECT_EQ(0.0, sin_cos_f64(0.0).sin);
  EXPECT_EQ(1.0, sin_cos_f64(0.0).cos);
}

TEST(philox, gives_the_known_answers_of_random123) {
  const auto expect = [](std::uint64_t key, philox_block counter, philox_block want) {
    const auto got = philox(key, counter);
    for (int i = 0; i < 4; ++i)
      EXPECT_EQ(want.word[i], got.word[i]) << "word " << i;
  };
  expect(0, {{0, 0, 0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect(~0ull, {{~0u, ~0u, ~0u, ~0u}}, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect(0x299f31d0a4093822ull, {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(gumbel, decreases_with_its_bits_and_stays_in_its_range) {
  double before = INFINITY;
  for (std::uint64_t bits = 0; bits <= 0xffffffffu; bits += 65537) {
    const double g = gumbel(static_cast<std::uint32_t>(bits));
    EXPECT_LT(g, before);
    before = g;
  }
  EXPECT_LT(gumbel(0), 22.9);
  EXPECT_GT(gumbel(0), gumbel(1)); // the winning tail keeps its resolution
  EXPECT_GT(gumbel(0xffffffffu), -3.2);
  const double u = 1.0 - 0.5 * 0x1p-32;
  EXPECT_NEAR(-std::log(-std::log1p(-(1.0 - u))), gumbel(0), 1e-12);
}

TEST(gumbel, has_the_gumbel_distribution) {
  constexpr int bins = 64, draws = 200'000;
  int count[bins] = {};
  for (std::uint32_t i = 0; i < draws; ++i) {
    const double g = gumbel(token_bits(0x1234567890abcdefull, 77, i));
    ++count[static_cast<int>(std::exp(-std::exp(-g)) * bins)]; // its distribution function
  }
  double chi_square = 0;
  for (const int c : count)
    chi_square += (c - draws / double{bins}) * (c - draws / double{bins}) / (draws / double{bins});
  EXPECT_LT(chi_square, 104.0); // 63 degrees of freedom: exceeded once in 1000 seeds
  EXPECT_GT(chi_square, 30.0);
}

TEST(fixed_weight, rounds_to_nearest) {
  EXPECT_EQ(1ull << 40, fixed_weight(1.0f));
  EXPECT_EQ(0u, fixed_weight(0.0f));
  EXPECT_EQ(1u, fixed_weight(0x1p-40f));
  EXPECT_EQ(0u, fixed_weight(0x1p-41f)); // a tie, to even
  EXPECT_EQ(2u, fixed_weight(0x1.8p-40f));
}

} // namespace
} // namespace rollcast::test
