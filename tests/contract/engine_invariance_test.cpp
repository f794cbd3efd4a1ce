// Goal: a response is a function of its request alone: the same bits for every batch size, row
// budget, block size, thread count, chunk length, KV fate between chunks, preemption and
// instruction set; and scoring gives the bits of generation.
// Method: one mixed rollout per family and profile is run in a plain way and in every other way;
// tokens, log-probabilities and kept masses are compared with memcmp.

#include "tests/contract/engine_settings.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace rollcast::test {

namespace {

TEST_P(engine_contract, responses_have_the_same_bits_however_they_are_scheduled) {
  const auto expected = run_setting(weights, profile(), work, plain);
  std::size_t tokens = 0;
  for (const auto& [id, response] : expected)
    tokens += response.tokens.size();
  ASSERT_GT(tokens, 400u);
  for (const auto& s : settings) {
    const auto got = run_setting(weights, profile(), work, s);
    for (const auto& [id, response] : expected)
      EXPECT_TRUE(same_bits(response, got.at(id))) << s.name << ", response " << id;
  }
}

TEST_P(engine_contract, scoring_gives_the_bits_of_generation) {
  const auto done = run_setting(weights, profile(), work, plain);
  engine scorer{make_device(weights, profile(), device_of(2, 64, 32, 48)), {7, 48, 0}};
  std::vector<float> logprobs;
  for (const auto& [id, response] : done) {
    auto tokens = response.prompt;
    tokens.insert(tokens.end(), response.tokens.begin(), response.tokens.end());
    ASSERT_TRUE(scorer.score(tokens, static_cast<std::uint32_t>(response.prompt.size()),
                             response.temperature, logprobs));
    ASSERT_EQ(logprobs.size(), response.logprobs.size());
    EXPECT_EQ(
      0, std::memcmp(logprobs.data(), response.logprobs.data(), logprobs.size() * sizeof(float)))
      << "response " << id;
  }
}

TEST_P(engine_contract, scores_have_the_same_bits_alone_and_in_any_company) {
  const auto done = run_setting(weights, profile(), work, plain);
  std::vector<std::vector<token_id>> tokens;
  std::vector<score_request> wanted;
  std::vector<std::vector<float>> expected;
  tokens.reserve(done.size());
  for (const auto& [id, r] : done) {
    tokens.push_back(r.prompt);
    tokens.back().insert(tokens.back().end(), r.tokens.begin(), r.tokens.end());
    wanted.push_back({tokens.back(), static_cast<std::uint32_t>(r.prompt.size()), r.temperature});
    expected.push_back(r.logprobs);
  }
  // One with nothing to score among them, one of a single token, and one that comes twice.
  wanted.push_back({tokens[0], static_cast<std::uint32_t>(tokens[0].size()), 1});
  wanted.push_back({std::span{tokens[0]}.first(1), 1, 1});
  wanted.push_back(wanted[3]);
  expected.insert(expected.end(), {{}, {}, expected[3]});
  const std::vector<setting> ways{
    {"all together", device_of(2, 512, 16), {64, 256, 0}, {}},
    {"room for a few at a time", device_of(1, 12, 16), {64, 256, 0}, {}},
    {"passes of 19 rows", device_of(1, 256, 32, 19), {8, 19, 0}, {}},
    {"few rows with logits",
     [] {
       auto device = device_of(2, 256, 16);
       device.logit_rows_max = 3;
       return device;
     }(),
     {3, 256, 0},
     {}}};
  for (const auto& way : ways) {
    engine scorer{make_device(weights, profile(), way.device), way.limits};
    std::vector<std::vector<float>> logprobs{{1, 2, 3}};
    const auto scored = scorer.score(wanted, logprobs);
    ASSERT_TRUE(scored) << way.name << ": " << scored.error().detail;
    ASSERT_EQ(logprobs.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_TRUE(std::ranges::equal(logprobs[i], expected[i],
                                     [](float a, float b) {
                                       return std::bit_cast<std::uint32_t>(a)
                                              == std::bit_cast<std::uint32_t>(b);
                                     }))
        << way.name << ", sequence " << i; // one of them is empty
    EXPECT_EQ(scorer.kv().free, way.device.kv_blocks) << way.name;
  }
}

TEST_P(engine_contract, what_cannot_be_scored_is_named_and_nothing_is_computed) {
  engine scorer{make_device(weights, profile(), device_of(1, 4, 16)), {8, 64, 0}};
  const std::vector<token_id> few(10, 1);
  const std::vector<token_id> many(100, 1);
  std::vector<std::vector<float>> logprobs;
  const std::vector<score_request> large{{few, 2, 1}, {many, 2, 1}};
  const auto no_room = scorer.score(large, logprobs);
  ASSERT_FALSE(no_room);
  EXPECT_EQ(no_room.error().code, errc::out_of_kv_blocks);
  EXPECT_EQ(no_room.error().detail,
            "sequence 1 of 2: scoring 100 tokens needs 7 KV blocks, free 4");
  const std::vector<score_request> empty{{few, 2, 1}, {few, 0, 1}};
  const auto no_prompt = scorer.score(empty, logprobs);
  ASSERT_FALSE(no_prompt);
  EXPECT_EQ(no_prompt.error().code, errc::bad_prompt);
  EXPECT_EQ(scorer.kv().free, 4u);
}

TEST_P(engine_contract, a_changed_image_or_another_prefix_is_not_believed) {
  std::vector<engine> engines;
  for (int i = 0; i < 2; ++i)
    engines.emplace_back(make_device(weights, profile(), device_of(1, 64, 16)), engine_limits{});
  auto request = work[1];
  request.sampling.max_new_tokens = 40;
  request.sampling.min_new_tokens = 40;
  request.generate_max = 20;
  ASSERT_TRUE(engines[0].admit(request));
  while (engines[0].has_work())
    engines[0].step();
  kv_bytes image;
  auto manifest = engines[0].export_kv(request.response, image);
  ASSERT_TRUE(manifest);
  image[image.size() / 2] ^= std::byte{1};
  const auto refused = engines[1].import_kv(*manifest, image);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::frame_malformed);
  EXPECT_EQ(engines[1].kv().free, 64u);
  image[image.size() / 2] ^= std::byte{1};
  manifest->prefix.low ^= 1; // KV of other tokens: taken in, but never used for these
  ASSERT_TRUE(engines[1].import_kv(*manifest, image));
  ASSERT_TRUE(engines[1].admit(request));
  EXPECT_EQ(engines[1].kv().parked, 0u);
  while (engines[1].has_work())
    engines[1].step();
  EXPECT_EQ(engines[1].stats().prompt_tokens, request.prompt_tokens);
}

INSTANTIATE_TEST_SUITE_P(families, engine_contract, every_model(), name_of_model);

} // namespace

} // namespace rollcast::test
