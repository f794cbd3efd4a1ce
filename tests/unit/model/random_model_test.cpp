// Goal: random models load, look like trained ones in size of values, and mean the same numbers
// however they are stored.
// Method: write them in every way and read the tensors back.

#include "engine/model/checkpoint.hpp"
#include "engine/model/finite.hpp"
#include "engine/model/random_model.hpp"
#include "tests/support/tiny_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace rollcast {
namespace {

std::vector<float> values(const checkpoint& source, std::string_view name) {
  const auto view = source.tensor(name);
  std::vector<float> out;
  for (std::size_t i = 0; i < view->bytes.size() / kernels::size_of(view->type); ++i)
    out.push_back(element_at(view->bytes, view->type, i));
  return out;
}

checkpoint written(const temporary_directory& directory, std::uint64_t seed, kernels::dtype type,
                   std::size_t shards = 1) {
  write_tiny_model(directory.path(), architecture::qwen2, seed, type, shards);
  return std::move(*checkpoint::open(directory.path()));
}

/// Expects that no half is nearer to `exact` than `half` is, and an even one where two are as near.
/// Counts the ties that went up, so that a test can tell that it met one.
void expect_nearest_half(float exact, float half, int& ties_up) {
  const auto error = [&](float x) { return std::fabs(static_cast<double>(exact) - x); };
  const int exponent = std::max(std::ilogb(half == 0.0f ? 0x1p-14f : half), -14);
  const float spacing = std::ldexp(1.0f, exponent - 10);
  // Below a power of two the halves lie closer; so nearness there is held by the finer spacing.
  ASSERT_LE(error(half), error(half + spacing));
  ASSERT_LE(error(half), error(half - spacing));
  if (error(half) == 0.5 * static_cast<double>(spacing)) {
    ASSERT_EQ(0.0f, std::fmod(half / spacing, 2.0f)) << exact << " is a tie";
    ties_up += std::fabs(half) > std::fabs(exact) ? 1 : 0;
  }
}

TEST(random_model, has_values_of_the_promised_size) {
  const temporary_directory directory;
  const auto source = written(directory, 1, kernels::dtype::f32);
  const auto moments = [&](std::string_view name) {
    double sum = 0;
    double squares = 0;
    const auto all = values(source, name);
    for (const float x : all) {
      sum += static_cast<double>(x);
      squares += static_cast<double>(x) * static_cast<double>(x);
    }
    const double mean = sum / static_cast<double>(all.size());
    return std::pair(mean, std::sqrt(squares / static_cast<double>(all.size()) - mean * mean));
  };
  const auto [mean, deviation] = moments("model.layers.1.mlp.gate_proj.weight");
  EXPECT_NEAR(0.0, mean, 0.01);
  EXPECT_NEAR(0.125, deviation, 0.01); // 1 / sqrt(64)
  EXPECT_NEAR(1.0, moments("model.norm.weight").first, 0.05);
  EXPECT_NEAR(0.02, moments("model.layers.0.self_attn.q_proj.bias").second, 0.006);
}

TEST(random_model, depends_on_seed_and_name_but_not_on_shards) {
  const temporary_directory one;
  const temporary_directory same;
  const temporary_directory other;
  const auto a = written(one, 7, kernels::dtype::bf16);
  const auto b = written(same, 7, kernels::dtype::bf16, 3);
  const auto c = written(other, 8, kernels::dtype::bf16);
  ASSERT_EQ(a.names(), b.names());
  for (const auto name : a.names())
    EXPECT_EQ(values(a, name), values(b, name)) << name;
  EXPECT_NE(values(a, "model.norm.weight"), values(c, "model.norm.weight"));
  EXPECT_NE(values(a, "model.layers.0.mlp.up_proj.weight"),
            values(a, "model.layers.1.mlp.up_proj.weight"));
}

TEST(random_model, rounds_the_same_numbers_for_every_dtype) {
  const temporary_directory directories[3];
  const auto f32 = written(directories[0], 1, kernels::dtype::f32);
  const auto bf16 = written(directories[1], 1, kernels::dtype::bf16);
  const auto f16 = written(directories[2], 1, kernels::dtype::f16);
  int ties_up = 0;
  for (const auto name : f32.names()) {
    const auto exact = values(f32, name);
    const auto coarse = values(bf16, name);
    const auto half = values(f16, name);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      ASSERT_EQ(kernels::widen_bf16(kernels::round_bf16(exact[i])), coarse[i]) << name;
      expect_nearest_half(exact[i], half[i], ties_up);
    }
  }
  EXPECT_GT(ties_up, 0) << "choose another seed";
}

TEST(random_model, says_when_it_cannot_write) {
  const auto done = write_random_model("/proc/rollcast/model", tiny_config(architecture::qwen3), 1,
                                       kernels::dtype::bf16);
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(errc::io_failed, done.error().code);
  EXPECT_NE(std::string::npos, done.error().detail.find("/proc/rollcast/model"));
}

} // namespace
} // namespace rollcast
