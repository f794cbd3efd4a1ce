// Goal: what a cluster cannot run is refused at the door, with the group and the numbers.
// Method: a small model of a cluster and batches that miss one bound each.

#include "cluster/batch/admission.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

const cluster_model model{"cpu-f32-v1", 3, 100, 50, 40};

wire::submit_batch sound() {
  wire::submit_batch spec;
  spec.sampling.max_new_tokens = 30;
  spec.groups.resize(2);
  for (auto& group : spec.groups)
    group.prompt_token_ids = {1, 2, 3};
  return spec;
}

TEST(admission, accepts_a_sound_batch) {
  const auto ok = check_batch(sound(), model);
  EXPECT_TRUE(ok) << ok.error().detail;
  auto spec = sound();
  spec.required_weight_version = 3;
  spec.groups[0].prompt_token_ids = std::vector<token_id>(10, 99); // exactly 40 tokens of KV
  EXPECT_TRUE(check_batch(spec, model));
}

TEST(admission, cuts_a_response_at_the_context) {
  wire::sampling_params sampling;
  sampling.max_new_tokens = 30;
  EXPECT_EQ(tokens_max(sampling, 3, 50), 30u);
  EXPECT_EQ(tokens_max(sampling, 45, 50), 5u);
  EXPECT_EQ(tokens_max(sampling, 50, 50), 0u);
}

TEST(admission, refuses_each_broken_bound_with_the_numbers) {
  const auto refused = [](auto change) {
    auto spec = sound();
    change(spec);
    const auto said = check_batch(spec, model);
    return said ? std::string{"accepted"}
                : std::string{to_string(said.error().code)} + " " + said.error().detail;
  };
  const auto expect = [&](const std::string& text, std::initializer_list<const char*> parts) {
    for (const auto* part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << text << " lacks " << part;
  };
  expect(refused([](auto& s) { s.groups[1].prompt_token_ids.assign(50, 1); }),
         {"bad_prompt", "group 1", "50 tokens", "context of 50"});
  expect(refused([](auto& s) {
           s.groups[1].prompt_token_ids = {1, 100};
         }),
         {"bad_prompt", "token id 100", "position 1", "vocabulary of 100"});
  expect(refused([](auto& s) { s.groups[0].prompt_token_ids = {-1}; }), {"bad_prompt", "-1"});
  expect(refused([](auto& s) { s.groups[0].prompt_token_ids.assign(11, 1); }),
         {"bad_prompt", "group 0", "41", "holds 40"});
  expect(refused([](auto& s) { s.sampling.stop_token_ids = {100}; }), {"bad_sampling", "100"});
  expect(refused([](auto& s) {
           s.groups[1].sampling = s.sampling;
           s.groups[1].sampling->stop_token_ids = {-5};
         }),
         {"bad_sampling", "group 1", "-5"});
  expect(refused([](auto& s) { s.policy = "longest"; }), {"bad_config", "longest", "divided"});
  expect(refused([](auto& s) { s.policy = "oracle"; }), {"bad_config", "oracle", "simulate"});
  expect(refused([](auto& s) { s.required_weight_version = 4; }), {"stale_epoch", "4", "3"});
}

TEST(admission, takes_ids_of_experts_of_a_model_that_has_some_and_only_as_many_as_fit_a_message) {
  auto spec = sound();
  spec.routed_experts_from = 2;
  const auto dense = check_batch(spec, model);
  ASSERT_FALSE(dense);
  EXPECT_EQ(dense.error().code, errc::bad_config);
  EXPECT_NE(dense.error().detail.find("position 2 on, and the model has no experts"),
            std::string::npos)
    << dense.error().detail;
  auto sparse = model;
  sparse.experts = expert_layout{58, 8, 1};
  EXPECT_TRUE(check_batch(spec, sparse));
  sparse.experts.reset(); // no worker is back yet
  EXPECT_TRUE(check_batch(spec, sparse));
  sparse = {"cpu-f32-v1", 3, 100, 200'000, 200'000, expert_layout{58, 8, 1}};
  spec.sampling.max_new_tokens = 150'000;
  const auto large = check_batch(spec, sparse);
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, errc::bad_config);
  EXPECT_NE(large.error().detail.find("group 0: ids of experts of up to 150000 positions, 464"),
            std::string::npos)
    << large.error().detail;
  spec.routed_experts_from = 50'000;
  EXPECT_TRUE(check_batch(spec, sparse));
}

} // namespace
} // namespace rollcast
