// Goal: a token chosen on the device is the CPU's, and so are its log-probability and kept mass,
// bit for bit.
// Method: rows of many kinds and parameters through both samplers; all bans; rows of nothing.

#include "kernels/cuda/sampling.hpp"
#include "kernels/sampling.hpp"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace rollcast::test {
namespace {

using kernels::sample_params;
using kernels::sampled_token;

sampled_token on_cpu(const float* logits, std::size_t n, const sample_params& params) {
  std::vector<std::byte> scratch(kernels::sample_scratch_bytes(n) + 64);
  auto at = reinterpret_cast<std::uintptr_t>(scratch.data());
  at = (at + 63) / 64 * 64;
  return kernels::sample_token_cpu(logits, n, params, reinterpret_cast<std::byte*>(at));
}

/// Flat, trained-looking, sharp, huge, tied, with holes.
std::vector<float> row(std::size_t n, std::uint64_t seed) {
  prng random{seed};
  const float scales[] = {0.1f, 2.0f, 8.0f, 40.0f, 1e4f, 1e20f};
  auto x = pattern(n, random.next(), scales[random.below(6)]);
  const auto kind = random.below(6);
  for (float& v : x) {
    if (kind == 1)
      v = std::floor(v * 2) / 2;
    if (kind == 2 && random.chance(50))
      v = random.chance(50) ? -INFINITY : poison;
    if (kind == 3)
      v = random.chance(50) ? 0.0f : -0.0f;
    if (kind == 4 && random.chance(2))
      v = INFINITY;
  }
  return x;
}

sample_params params_of(std::uint64_t seed) {
  prng random{seed};
  sample_params p;
  const float temperatures[] = {1.0f, 0.0f, 0.7f, 1.5f, 1e-4f};
  p.temperature = temperatures[random.below(5)];
  const float top_ps[] = {1.0f, 0.9f, 0.5f, 0.0f, 0.999f};
  p.top_p = top_ps[random.below(5)];
  const std::uint32_t top_ks[] = {0, 1, 7, 50, 100000};
  p.top_k = top_ks[random.below(5)];
  const float min_ps[] = {0.0f, 0.0f, 0.05f, 1.5f};
  p.min_p = min_ps[random.below(4)];
  p.seed = random.next();
  p.position = static_cast<std::uint32_t>(random.below(100'000));
  return p;
}

void expect_cpus(const std::vector<float>& logits, const std::vector<sample_params>& params) {
  const std::size_t n = logits.size() / params.size();
  const on_device<float> on{logits};
  auto device_params = params;
  std::vector<on_device<std::int32_t>> bans;
  for (auto& p : device_params)
    if (p.banned_count != 0)
      p.banned =
        bans.emplace_back(std::vector<std::int32_t>(p.banned, p.banned + p.banned_count)).data();
  const on_device<sample_params> on_params{device_params};
  const on_device<sampled_token> out{params.size()};
  must(cuda::sample({on.data(), n, params.size(), n, on_params.data(), out.data()}, nullptr));
  const auto got = out.values();
  std::vector<float> temperatures;
  std::vector<std::int32_t> tokens;
  for (std::size_t r = 0; r < params.size(); ++r) {
    const auto want = on_cpu(logits.data() + r * n, n, params[r]);
    ASSERT_EQ(got[r].token, want.token) << r;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[r].logprob),
              std::bit_cast<std::uint32_t>(want.logprob))
      << r;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[r].kept_mass),
              std::bit_cast<std::uint32_t>(want.kept_mass))
      << r << ": " << got[r].kept_mass << " " << want.kept_mass;
    temperatures.push_back(params[r].temperature);
    tokens.push_back(static_cast<std::int32_t>(r * 7 % n));
  }
  const on_device<float> on_temperatures{temperatures}, scores{params.size()};
  const on_device<std::int32_t> on_tokens{tokens};
  must(cuda::score(
    {on.data(), n, params.size(), n, on_temperatures.data(), on_tokens.data(), scores.data()},
    nullptr));
  const auto scored = scores.values();
  for (std::size_t r = 0; r < params.size(); ++r)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(scored[r]),
              std::bit_cast<std::uint32_t>(
                kernels::token_logprob_cpu(logits.data() + r * n, n, temperatures[r], tokens[r])))
      << r;
}

TEST(cuda_sampling, is_the_cpus_for_every_kind_of_row) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const std::size_t n = std::vector<std::size_t>{1, 33, 700, 1999}[seed % 4];
    std::vector<float> logits;
    std::vector<sample_params> params;
    for (std::uint64_t r = 0; r < 6; ++r) {
      const auto x = row(n, seed * 100 + r);
      logits.insert(logits.end(), x.begin(), x.end());
      params.push_back(params_of(seed * 1000 + r));
    }
    expect_cpus(logits, params);
  }
}

TEST(cuda_sampling, is_the_cpus_for_a_row_of_several_rounds) {
  // A thread has a token more than once: 512 of them, four tokens at a time.
  const std::size_t n = 5003;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    sample_params params;
    params.seed = seed;
    params.position = 17;
    expect_cpus(pattern(n, seed + 1, 0.5f), {params});
  }
}

TEST(cuda_sampling, leaves_out_banned_tokens) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    const std::size_t n = 300;
    const auto logits = row(n, seed);
    prng random{seed};
    std::vector<std::int32_t> banned;
    const auto best = std::max_element(logits.begin(), logits.end(), [](float a, float b) {
      return (std::isnan(a) ? -INFINITY : a) < (std::isnan(b) ? -INFINITY : b);
    });
    banned.push_back(static_cast<std::int32_t>(best - logits.begin()));
    for (int i = 0; i < 5; ++i)
      banned.push_back(static_cast<std::int32_t>(random.below(n)));
    banned.push_back(banned.back()); // named twice
    if (seed % 10 == 9) {
      banned.clear();
      for (std::int32_t i = 0; i < static_cast<std::int32_t>(n); ++i)
        banned.push_back(i);
    }
    auto params = params_of(seed);
    params.banned = banned.data();
    params.banned_count = banned.size();
    expect_cpus(logits, {params});
  }
}

TEST(cuda_sampling, gives_a_row_of_nothing_the_lowest_token) {
  const std::vector<float> nothing(100, -INFINITY);
  const std::int32_t banned[] = {0, 1, 3};
  sample_params params;
  params.banned = banned;
  params.banned_count = 3;
  expect_cpus(nothing, {params});
  auto one = nothing;
  one[3] = 1.0f;
  expect_cpus(one, {params});
}

TEST(cuda_sampling, finds_cuts_far_behind_the_best_token) {
  // Nearly all probability beyond eight nats: the second, whole search.
  std::vector<float> logits(1500, 0.0f);
  logits[700] = 9.0f;
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] += static_cast<float>(i % 97) * 1e-3f;
  for (const float top_p : {0.95f, 0.9999f})
    for (const std::uint32_t top_k : {0u, 400u}) {
      sample_params params;
      params.top_p = top_p;
      params.top_k = top_k;
      params.seed = 77;
      expect_cpus(logits, {params});
    }
}

} // namespace
} // namespace rollcast::test
