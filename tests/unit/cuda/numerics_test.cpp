// Goal: exp, log, noise and weights of kernels are the CPU's, bit for bit.
// Method: a sweep over all magnitudes, the edges, and words of noise.
#include "kernels/cuda/numerics.cuh"
#include "kernels/numerics.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <gtest/gtest.h>

#include <bit>

namespace rollcast::test {
namespace {

namespace cuda = kernels::cuda;

/// Bits, with one pattern for every NaN.
std::uint64_t bits_of(double x) {
  return x != x ? 1 : std::bit_cast<std::uint64_t>(x);
}

TEST(cuda_numerics, exp_is_the_cpus) {
  for (std::uint64_t word = 0; word < (std::uint64_t{1} << 32); word += 20'011) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(word));
    ASSERT_EQ(bits_of(static_cast<double>(cuda::exp_f32(x))),
              bits_of(static_cast<double>(kernels::exp_f32(x))))
      << x;
  }
  for (const float x : {0.0f, -0.0f, INFINITY, -INFINITY, -87.33f, -87.34f, 88.72f, 88.73f})
    EXPECT_EQ(bits_of(static_cast<double>(cuda::exp_f32(x))),
              bits_of(static_cast<double>(kernels::exp_f32(x))));
}

TEST(cuda_numerics, double_functions_are_the_cpus) {
  prng random{5};
  for (int i = 0; i < 300'000; ++i) {
    const double x = std::bit_cast<double>(random.next());
    ASSERT_EQ(bits_of(cuda::exp_f64(x)), bits_of(kernels::exp_f64(x))) << x;
    ASSERT_EQ(bits_of(cuda::log_f64(x)), bits_of(kernels::log_f64(x))) << x;
    const double small = static_cast<double>(random.next() >> 11) * 0x1p-53 * 60 - 50;
    ASSERT_EQ(bits_of(cuda::exp_f64(small)), bits_of(kernels::exp_f64(small))) << small;
    ASSERT_EQ(bits_of(cuda::log_f64(small)), bits_of(kernels::log_f64(small))) << small;
  }
}

TEST(cuda_numerics, noise_and_weights_are_the_cpus) {
  prng random{6};
  for (int i = 0; i < 100'000; ++i) {
    const std::uint64_t seed = random.next();
    const auto position = static_cast<std::uint32_t>(random.next());
    const auto token = static_cast<std::uint32_t>(random.below(1 << 20));
    const auto words = cuda::philox_words(seed, token / 4, position);
    const std::uint32_t bits = words.word[token % 4];
    ASSERT_EQ(bits, kernels::token_bits(seed, position, token));
    ASSERT_EQ(bits_of(cuda::gumbel(bits)), bits_of(kernels::gumbel(bits)));
    const float w = static_cast<float>(bits >> 8) * 0x1p-24f;
    ASSERT_EQ(cuda::fixed_weight(w), kernels::fixed_weight(w));
  }
  EXPECT_EQ(cuda::fixed_weight(1.0f), kernels::fixed_weight(1.0f));
}

} // namespace
} // namespace rollcast::test
