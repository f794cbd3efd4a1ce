// Goal: presets can be simulated, and a model is calibrated from what bench engine writes.
// Method: files in a directory of the test's own; impossible models.

#include "cluster/sim/cost_model.hpp"
#include "cluster/sim/workload.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>

namespace rollcast::sim {
namespace {

std::filesystem::path file_of(const std::string& text) {
  static const temporary_directory directory;
  const auto path = directory / "file";
  std::ofstream{path} << text;
  return path;
}

TEST(cost_model, has_a_preset_for_each_workload) {
  for (const auto& name : workload_names()) {
    const auto model = find_cost_model(name);
    ASSERT_TRUE(model.has_value()) << name;
    EXPECT_TRUE(check(*model).has_value());
    const auto spec = *find_workload(name);
    // The longest response, with its prompt, must fit a worker.
    EXPECT_GT(std::uint64_t{model->kv_blocks} * model->block_tokens,
              spec.tokens_max + spec.prompt_mean * 2);
  }
  EXPECT_TRUE(find_cost_model("cpu").has_value());
  EXPECT_FALSE(find_cost_model("tpu").has_value());
}

TEST(cost_model, is_calibrated_from_bench_engine) {
  // Steps of 10 ms and 1 ms a row.
  const auto model = read_cost_model(file_of(
    R"({"cpu-f32-v1": {"prefill_tokens_per_s": 500, "decode_tokens_per_s":
        {"1": 90.909090909, "4": 285.714285714, "16": 615.384615385}}})"));
  ASSERT_TRUE(model.has_value()) << model.error().detail;
  EXPECT_NEAR(model->step_fixed_s, 0.010, 1e-6);
  EXPECT_NEAR(model->step_row_s, 0.001, 1e-6);
  EXPECT_NEAR(model->prefill_token_s, 0.002, 1e-9);
  EXPECT_TRUE(check(*model).has_value());
}

TEST(cost_model, refuses_a_file_that_is_not_of_bench_engine) {
  for (const auto* text :
       {"", "[]", "{}", R"({"cpu-f32-v1": {}})",
        R"({"cpu-f32-v1": {"prefill_tokens_per_s": 5, "decode_tokens_per_s": {}}})",
        R"({"cpu-f32-v1": {"prefill_tokens_per_s": 0, "decode_tokens_per_s": {"1": 5}}})",
        R"({"cpu-f32-v1": {"prefill_tokens_per_s": 5, "decode_tokens_per_s": {"1": -5}}})",
        R"({"cpu-f32-v1": {"prefill_tokens_per_s": 5, "decode_tokens_per_s": {"x": 5}}})"}) {
    const auto model = read_cost_model(file_of(text));
    ASSERT_FALSE(model.has_value()) << text;
    EXPECT_EQ(model.error().code, errc::bad_config) << text;
  }
  EXPECT_EQ(read_cost_model("/nowhere.json").error().code, errc::io_failed);
}

TEST(cost_model, refuses_numbers_that_mean_nothing) {
  const auto good = *find_cost_model("cpu");
  const auto refused = [](cost_model m) { return !check(m).has_value(); };
  auto m = good;
  m.workers = 0;
  EXPECT_TRUE(refused(m));
  m = good;
  m.kv_blocks = 0;
  EXPECT_TRUE(refused(m));
  m = good;
  m.step_fixed_s = 0;
  EXPECT_TRUE(refused(m));
  m = good;
  m.step_row_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(refused(m));
  m = good;
  m.migration_bytes_per_s = 0;
  EXPECT_TRUE(refused(m));
}

} // namespace
} // namespace rollcast::sim
