// Goal: the sampler chooses what its definition says, although it looks at the noise of few tokens,
// reports the right log-probability, and gives the same bits on every instruction set.
// Method: thousands of rows of many sizes, shapes and parameters against a sort-everything oracle
// in double; edge cases by hand; a chi-square test of what comes out.
#include "kernels/dispatch.hpp"
#include "kernels/sampling.hpp"
#include "tests/oracle/sampling.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace rollcast::test {
namespace {

using kernels::sample_params;
using kernels::sampled_token;

class sampling : public testing::Test {
protected:
  void TearDown() override { kernels::use_instruction_set(""); }

  static sampled_token sample(const std::vector<float>& logits, const sample_params& params) {
    const std::size_t bytes = (kernels::sample_scratch_bytes(logits.size()) + 63) / 64 * 64;
    const std::unique_ptr<void, decltype(&std::free)> scratch{std::aligned_alloc(64, bytes),
                                                              &std::free};
    std::memset(scratch.get(), 0xff, bytes);
    return kernels::sample_token_cpu(logits.data(), logits.size(), params,
                                     static_cast<std::byte*>(scratch.get()));
  }

  static void expect_oracle(const std::vector<float>& logits, const sample_params& params) {
    const auto want = oracle::sample(logits, params);
    const auto got = sample(logits, params);
    ASSERT_EQ(want.token, static_cast<std::size_t>(got.token));
    if (std::isfinite(want.logprob)) {
      ASSERT_NEAR(want.logprob, got.logprob, 1e-6 + 0x1p-23 * std::abs(want.logprob));
    }
    ASSERT_NEAR(want.kept_mass, got.kept_mass, 1e-6);
    const float alone =
      kernels::token_logprob_cpu(logits.data(), logits.size(), params.temperature, got.token);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(alone), std::bit_cast<std::uint32_t>(got.logprob));
  }
};

/// A row whose kind changes with the seed: flat, trained-looking, sharp, huge, tied, with holes.
std::vector<float> row(std::size_t n, std::uint64_t seed) {
  prng random{seed};
  const float scales[] = {0.1f, 2.0f, 8.0f, 40.0f, 1e4f, 1e20f};
  auto x = pattern(n, random.next(), scales[random.below(6)]);
  const auto kind = random.below(5);
  for (float& v : x) {
    if (kind == 1)
      v = std::floor(v * 2) / 2; // many ties
    if (kind == 2 && random.chance(50))
      v = random.chance(50) ? -INFINITY : poison;
    if (kind == 3)
      v = std::clamp(v * std::abs(v), -1e30f, 1e30f); // a longer tail
  }
  x[random.below(n)] = 0.0f; // so that one is finite
  return x;
}

TEST_F(sampling, chooses_the_oracles_token_without_filters) {
  std::uint64_t seed = 0;
  for (const std::size_t n : {1u, 2u, 5u, 16u, 31u, 32u, 33u, 63u, 64u, 65u, 258u, 1000u, 4097u})
    for (int i = 0; i < 300; ++i, ++seed) {
      SCOPED_TRACE("vocabulary " + std::to_string(n) + " seed " + std::to_string(seed));
      sample_params params;
      params.seed = seed * 0x9e3779b97f4a7c15u;
      params.position = static_cast<std::uint32_t>(seed);
      params.temperature = i % 3 == 0 ? 1.0f : i % 3 == 1 ? 0.6f : 1.7f;
      expect_oracle(row(n, seed), params);
      if (HasFatalFailure())
        return;
    }
}

TEST_F(sampling, chooses_the_oracles_token_from_a_full_vocabulary) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    expect_oracle(row(32'000, seed), {.seed = seed, .position = 3});
    if (HasFatalFailure())
      return;
  }
}

TEST_F(sampling, chooses_the_oracles_token_with_filters_and_bans) {
  std::uint64_t seed = 1'000'000;
  for (const std::size_t n : {2u, 5u, 33u, 64u, 258u, 3000u})
    for (int i = 0; i < 500; ++i, ++seed) {
      SCOPED_TRACE("vocabulary " + std::to_string(n) + " seed " + std::to_string(seed));
      prng random{seed};
      sample_params params;
      params.seed = random.next();
      params.temperature = random.chance(50) ? 1.0f : 0.7f;
      const float top_p[] = {1.0f, 0.999f, 0.95f, 0.5f, 0.01f};
      const float min_p[] = {0.0f, 0.02f, 0.5f, 1.0f};
      params.top_p = top_p[random.below(5)];
      params.min_p = min_p[random.below(4)];
      params.top_k = random.chance(50) ? 0 : static_cast<std::uint32_t>(1 + random.below(n + 2));
      const auto logits = row(n, seed);
      // Never ban every finite token: that case has its own test.
      std::vector<std::int32_t> banned;
      for (std::uint64_t b = random.below(3); b > 0; --b)
        banned.push_back(static_cast<std::int32_t>(random.below(n)));
      if (random.chance(30))
        banned.push_back(sample(logits, {}).token);
      std::size_t left = 0;
      for (std::size_t t = 0; t < n; ++t)
        left +=
          logits[t] > -INFINITY
          && std::find(banned.begin(), banned.end(), static_cast<std::int32_t>(t)) == banned.end();
      if (left == 0)
        banned.clear();
      params.banned = banned.data();
      params.banned_count = banned.size();
      expect_oracle(logits, params);
      if (HasFatalFailure())
        return;
    }
}

TEST_F(sampling, is_argmax_at_temperature_zero) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    sample_params params;
    params.temperature = 0.0f;
    params.top_k = 3;
    params.top_p = 0.1f;
    const std::int32_t banned[] = {7};
    params.banned = banned;
    params.banned_count = seed % 2;
    expect_oracle(row(300, seed), params);
    if (HasFatalFailure())
      return;
  }
  EXPECT_EQ(1, sample({1.0f, 3.0f, 3.0f, 2.0f}, {.temperature = 0.0f}).token) << "lowest id wins";
}

TEST_F(sampling, survives_rows_that_leave_nothing_to_choose) {
  const std::vector<float> nothing(40, -INFINITY), nan(40, poison);
  EXPECT_EQ(0, sample(nothing, {}).token);
  EXPECT_EQ(0, sample(nan, {}).token);
  EXPECT_EQ(-INFINITY, sample(nothing, {}).logprob);
  const std::int32_t banned[] = {0, 1, 3};
  sample_params params;
  params.banned = banned;
  params.banned_count = 3;
  EXPECT_EQ(2, sample(nothing, params).token);
  EXPECT_EQ(2, sample({1.0f, 2.0f, -INFINITY, 3.0f}, params).token)
    << "all that could be is banned";
  EXPECT_EQ(0.0f, sample({1.0f, 2.0f, -INFINITY, 3.0f}, params).kept_mass);
  const std::int32_t all[] = {0, 1};
  params.banned = all;
  params.banned_count = 2;
  EXPECT_EQ(1, sample({1.0f, 2.0f}, params).token) << "then bans give way";
  const auto infinite = sample({1.0f, INFINITY, 2.0f}, {});
  EXPECT_EQ(1, infinite.token);
  EXPECT_EQ(0.0f, infinite.logprob);
}

TEST_F(sampling, reports_one_where_nothing_was_taken_away) {
  const auto logits = row(1000, 42);
  EXPECT_EQ(1.0f, sample(logits, {}).kept_mass);
  EXPECT_EQ(1.0f, sample(logits, {.top_k = 1000}).kept_mass);
  EXPECT_LT(sample(logits, {.top_k = 1}).kept_mass, 1.0f);
}

TEST_F(sampling, depends_on_seed_and_position_only_through_its_noise) {
  const auto logits = pattern(500, 3);
  std::vector<int> seen(500);
  for (std::uint32_t i = 0; i < 200; ++i) {
    ++seen[static_cast<std::size_t>(sample(logits, {.seed = i}).token)];
    ++seen[static_cast<std::size_t>(sample(logits, {.seed = 5, .position = i}).token)];
  }
  EXPECT_GT(std::count_if(seen.begin(), seen.end(), [](int c) { return c > 0; }), 150);
  EXPECT_EQ(sample(logits, {.seed = 5}).token, sample(logits, {.seed = 5}).token);
}

TEST_F(sampling, follows_the_softmax) {
  const auto logits = pattern(20, 8, 1.5f);
  constexpr int draws = 40'000;
  std::vector<int> count(20);
  for (int i = 0; i < draws; ++i)
    ++count[static_cast<std::size_t>(
      sample(logits, {.temperature = 0.8f, .seed = static_cast<std::uint64_t>(i)}).token)];
  double sum = 0, chi_square = 0;
  for (const float x : logits)
    sum += std::exp(static_cast<double>(x) / 0.8);
  for (std::size_t i = 0; i < 20; ++i) {
    const double want = draws * std::exp(static_cast<double>(logits[i]) / 0.8) / sum;
    chi_square += (count[i] - want) * (count[i] - want) / want;
  }
  EXPECT_LT(chi_square, 43.8); // 19 degrees of freedom: exceeded once in 1000 seeds
}

TEST_F(sampling, gives_the_same_bits_on_every_instruction_set) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const auto logits = row(2000 + seed, seed);
    for (const float top_p : {1.0f, 0.9f}) {
      const sample_params params{.top_p = top_p, .seed = seed};
      kernels::use_instruction_set("");
      const auto want = sample(logits, params);
      for (const auto set : kernels::instruction_sets()) {
        SCOPED_TRACE(set);
        ASSERT_TRUE(kernels::use_instruction_set(set));
        const auto got = sample(logits, params);
        EXPECT_EQ(want.token, got.token);
        EXPECT_EQ(std::bit_cast<std::uint32_t>(want.logprob),
                  std::bit_cast<std::uint32_t>(got.logprob));
        EXPECT_EQ(std::bit_cast<std::uint32_t>(want.kept_mass),
                  std::bit_cast<std::uint32_t>(got.kept_mass));
      }
    }
  }
}

} // namespace
} // namespace rollcast::test
