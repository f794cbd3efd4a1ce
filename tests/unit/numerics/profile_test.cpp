// Goal: a numerics profile is found by its name, told apart by its hash, and computed only by a
// device that can.
// Method: every profile against every other; a CPU device asked for the GPU's.
#include "engine/numerics/profile.hpp"
#include "engine/numerics/profile_list.hpp"
#include "tests/support/fixture_models.hpp"

#include <gtest/gtest.h>

#include <set>

namespace rollcast::test {
namespace {

TEST(profile, is_found_by_name_and_told_apart_by_hash) {
  std::set<std::uint64_t> seen;
  for (const auto& profile : all_profiles()) {
    const auto found = find_profile(profile.name);
    ASSERT_TRUE(found.has_value());
    EXPECT_TRUE(seen.insert(found->hash().low).second) << profile.name;
  }
  EXPECT_EQ(all_profiles().front().name, default_profile);
  const auto unknown = find_profile("cpu-f32-v9");
  ASSERT_FALSE(unknown.has_value());
  EXPECT_EQ(unknown.error().detail, "unknown numerics profile 'cpu-f32-v9': this build has "
                                    "cpu-f32-v1, cpu-bf16-v1, cuda-bf16-v1, cuda-bf16-fast-v1");
}

TEST(profile, of_a_gpu_is_one_for_each_architecture) {
  auto profile = *find_profile("cuda-bf16-v1");
  EXPECT_TRUE(profile.gpu);
  std::set<std::uint64_t> seen;
  for (const std::uint32_t architecture : {0u, 80u, 90u, 100u}) {
    profile.architecture = architecture;
    EXPECT_TRUE(seen.insert(profile.hash().low).second) << architecture;
  }
}

TEST(profile, is_exact_unless_its_name_says_fast) {
  for (const auto& profile : all_profiles()) {
    EXPECT_EQ(profile.exact, profile.name.find("fast") == std::string_view::npos) << profile.name;
    EXPECT_EQ(profile.exact, !profile.contract.starts_with("not exact")) << profile.name;
  }
}

TEST(profile, of_a_gpu_is_refused_by_a_cpu) {
  const auto weights = load_weights(fixture_model("qwen3"), "cpu-bf16-v1");
  const auto device = make_cpu_backend(weights, *find_profile("cuda-bf16-v1"), {});
  ASSERT_FALSE(device.has_value());
  EXPECT_EQ(device.error().code, errc::unsupported_numerics);
  EXPECT_NE(device.error().detail.find("needs a GPU"), std::string::npos) << device.error().detail;
}

} // namespace
} // namespace rollcast::test
