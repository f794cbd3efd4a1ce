// Goal: drawn workloads have the published numbers.
// Method: draw each over several seeds and measure mean, maximum, sizes and the share of variance
// between prompts; sweep the correlation.

#include "cluster/sim/normal.hpp"
#include "cluster/sim/workload.hpp"

#include <gtest/gtest.h>

#include <map>

namespace rollcast::sim {
namespace {

struct published {
  std::size_t responses;
  std::uint32_t group_size;
  std::uint32_t tokens_max;
  double mean;
};
const std::map<std::string, published> table_3{{"moonlight", {3200, 8, 65'536, 22'386}},
                                               {"qwen2-vl-72b", {9600, 16, 40'960, 7'615}},
                                               {"kimi-k2", {6400, 8, 98'304, 38'959}}};

TEST(workload, has_the_published_sizes_mean_and_maximum) {
  ASSERT_EQ(workload_names().size(), table_3.size());
  for (const auto& [name, wanted] : table_3)
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      const auto batch = draw_workload(*find_workload(name), seed);
      ASSERT_EQ(batch.responses.size(), wanted.responses) << name;
      EXPECT_EQ(batch.tokens_max, wanted.tokens_max);
      for (std::size_t i = 0; i < batch.responses.size(); ++i) {
        ASSERT_EQ(batch.responses[i].group, i / wanted.group_size);
        ASSERT_EQ(batch.responses[i].index, i % wanted.group_size);
        ASSERT_GE(batch.responses[i].output_tokens, 1u);
        ASSERT_GE(batch.responses[i].prompt_tokens, 1u);
      }
      const auto seen = measure_lengths(batch);
      EXPECT_NEAR(seen.mean / wanted.mean, 1, 0.02) << name << " seed " << seed;
      EXPECT_EQ(seen.longest, wanted.tokens_max) << name << " seed " << seed;
    }
}

TEST(workload, has_the_wanted_share_of_variance_between_prompts) {
  for (const auto& name : workload_names()) {
    double sum = 0;
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      const auto seen = measure_lengths(draw_workload(*find_workload(name), seed));
      EXPECT_NEAR(seen.variance_between, 0.648, 0.03) << name << " seed " << seed;
      sum += seen.variance_between;
    }
    EXPECT_NEAR(sum / 5, 0.648, 0.015) << name;
  }
}

TEST(workload, takes_any_correlation_without_changing_the_mean) {
  for (const double wanted : {0.0, 0.3, 0.9, 1.0}) {
    auto spec = *find_workload("qwen2-vl-72b");
    spec.variance_between = wanted;
    const auto seen = measure_lengths(draw_workload(spec, 3));
    EXPECT_NEAR(seen.variance_between, wanted, 0.03);
    EXPECT_NEAR(seen.mean / spec.mean_tokens, 1, 0.02);
  }
}

TEST(workload, is_a_function_of_its_seed) {
  const auto spec = *find_workload("moonlight");
  EXPECT_EQ(draw_workload(spec, 4).responses, draw_workload(spec, 4).responses);
  EXPECT_NE(draw_workload(spec, 4).responses, draw_workload(spec, 5).responses);
  EXPECT_FALSE(find_workload("gpt").has_value());
}

TEST(normal_quantile, is_the_inverse_of_the_normal_distribution) {
  for (const double x : {-4.5, -2.0, -0.3, 0.0, 0.7, 1.9, 2.4, 5.0})
    EXPECT_NEAR(normal_quantile(0.5 * std::erfc(-x / std::sqrt(2.0))), x, 1e-6);
}

} // namespace
} // namespace rollcast::sim
