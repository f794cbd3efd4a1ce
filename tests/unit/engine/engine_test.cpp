// Goal: what the engine promises besides bits: refusals with numbers, blocks that are neither lost
// nor doubled, limits that hold, stop conditions.
// Method: a tiny real model; every request ends in a known way and the block count is checked.

#include "engine/cache/block_pool.hpp"
#include "tests/support/fixture_models.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace rollcast::test {

namespace {

constexpr std::uint32_t blocks = 16; ///< Of 16 positions: exactly one full context of 256.

engine make_engine(engine_limits limits = {}) {
  static const auto weights = load_weights(fixture_model("qwen3"), "cpu-f32-v1");
  cpu_backend_options options;
  options.kv_blocks = blocks;
  options.block_tokens = 16;
  return {make_device(weights, "cpu-f32-v1", options), limits};
}

chunk_request request_of(std::uint64_t id, std::size_t prompt, std::uint32_t new_tokens) {
  chunk_request request;
  request.response = {id};
  request.tokens.assign(prompt, 7);
  request.prompt_tokens = static_cast<std::uint32_t>(prompt);
  request.sampling.max_new_tokens = new_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.seed = id;
  request.generate_max = new_tokens;
  return request;
}

errc refusal(const chunk_request& request) {
  auto sut = make_engine();
  const auto ok = sut.admit(request);
  EXPECT_EQ(sut.kv().free, blocks) << "a refused request holds nothing";
  EXPECT_FALSE(sut.has_work());
  return ok ? errc::ok : ok.error().code;
}

TEST(engine, refuses_what_it_cannot_do_and_says_why) {
  auto bad = request_of(1, 4, 4);
  bad.tokens.clear();
  EXPECT_EQ(refusal(bad), errc::bad_prompt);
  EXPECT_EQ(refusal(request_of(1, 256, 4)), errc::bad_prompt) << "no room for an answer";
  bad = request_of(1, 4, 4);
  bad.tokens[2] = 200;
  EXPECT_EQ(refusal(bad), errc::bad_prompt) << "outside the vocabulary";
  bad.tokens[2] = -1;
  EXPECT_EQ(refusal(bad), errc::bad_prompt);
  for (const float temperature : {-0.1f, std::nanf(""), INFINITY}) {
    bad = request_of(1, 4, 4);
    bad.sampling.temperature = temperature;
    EXPECT_EQ(refusal(bad), errc::bad_sampling) << temperature;
  }
  bad = request_of(1, 4, 4);
  bad.sampling.top_p = 0;
  EXPECT_EQ(refusal(bad), errc::bad_sampling);
  bad = request_of(1, 4, 4);
  bad.sampling.stop_token_ids = {200};
  EXPECT_EQ(refusal(bad), errc::bad_sampling);
  EXPECT_EQ(refusal(request_of(1, 4, 0)), errc::bad_sampling);
}

TEST(engine, reserves_a_whole_chunk_or_refuses_it_with_the_numbers) {
  auto sut = make_engine();
  ASSERT_TRUE(sut.admit(request_of(1, 100, 100))); // 199 positions: 13 blocks
  EXPECT_EQ(sut.kv().free, 3u);
  const auto full = sut.admit(request_of(2, 40, 20)); // 59 positions: 4 blocks
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, errc::out_of_kv_blocks);
  EXPECT_NE(full.error().detail.find("needs 4 KV blocks, holds 0, free 3 of 16"), std::string::npos)
    << full.error().detail;
  ASSERT_TRUE(sut.admit(request_of(3, 40, 9))); // 48 positions: 3 blocks
  EXPECT_EQ(sut.kv().free, 0u);
  while (sut.has_work())
    sut.step();
  EXPECT_EQ(sut.kv().free, blocks);
  EXPECT_EQ(sut.stats().generated_tokens, 109u);
  EXPECT_EQ(sut.stats().prompt_tokens, 140u);
}

TEST(engine, parks_kv_between_chunks_and_frees_it_on_release) {
  auto sut = make_engine();
  auto request = request_of(5, 20, 50);
  request.generate_max = 30;
  ASSERT_TRUE(sut.admit(request));
  std::vector<token_id> made;
  while (sut.has_work())
    for (const auto& report : sut.step()) {
      EXPECT_EQ(report.why, chunk_end::budget);
      made.assign(report.tokens.begin(), report.tokens.end());
    }
  ASSERT_EQ(made.size(), 30u);
  EXPECT_TRUE(sut.parked({5}));
  EXPECT_EQ(sut.kv().parked, 4u) << "49 positions: the last token is not fed yet";
  request.tokens.insert(request.tokens.end(), made.begin(), made.end());
  const auto prompts = sut.stats().prompt_tokens;
  ASSERT_TRUE(sut.admit(request));
  EXPECT_FALSE(sut.parked({5}));
  while (sut.has_work())
    for (const auto& report : sut.step())
      EXPECT_EQ(report.why, chunk_end::length);
  EXPECT_EQ(sut.stats().prompt_tokens, prompts) << "nothing was computed twice";
  EXPECT_EQ(sut.stats().recomputed_tokens, 0u);
  EXPECT_EQ(sut.kv().free, blocks);
  EXPECT_FALSE(sut.release({5}));
}

TEST(engine, ends_at_a_stop_id_but_not_before_min_new_tokens) {
  auto sut = make_engine();
  auto request = request_of(9, 10, 40);
  ASSERT_TRUE(sut.admit(request));
  std::vector<token_id> free_run;
  while (sut.has_work())
    for (const auto& report : sut.step())
      free_run.assign(report.tokens.begin(), report.tokens.end());
  ASSERT_EQ(free_run.size(), 40u);
  request.sampling.stop_token_ids = {free_run[12]};
  const auto first = std::find(free_run.begin(), free_run.end(), free_run[12]) - free_run.begin();
  ASSERT_TRUE(sut.admit(request));
  while (sut.has_work())
    for (const auto& report : sut.step()) {
      EXPECT_EQ(report.why, chunk_end::stop);
      EXPECT_EQ(report.tokens.size(), static_cast<std::size_t>(first) + 1);
      EXPECT_EQ(report.tokens.back(), free_run[12]) << "the stop id is part of the response";
    }
  request.sampling.min_new_tokens = 20;
  ASSERT_TRUE(sut.admit(request));
  while (sut.has_work())
    for (const auto& report : sut.step()) {
      EXPECT_GE(report.tokens.size(), 20u);
      for (std::size_t i = 0; i < 20 && i < report.tokens.size(); ++i) {
        EXPECT_NE(report.tokens[i], free_run[12]);
        EXPECT_LE(report.kept_masses[i], 1.0f);
      }
    }
}

TEST(engine, runs_at_most_batch_max_responses_in_a_step) {
  auto sut = make_engine({3, 64, 0});
  for (std::uint64_t id = 1; id <= 8; ++id)
    ASSERT_TRUE(sut.admit(request_of(id, 4, 10)));
  std::uint64_t rows = 0;
  while (sut.has_work()) {
    sut.step();
    EXPECT_LE(sut.running(), 3u);
    EXPECT_LE(sut.stats().rows - rows, 64u);
    rows = sut.stats().rows;
  }
  EXPECT_EQ(sut.stats().generated_tokens, 80u);
}

TEST(engine, forgets_a_released_response_in_any_state) {
  auto sut = make_engine({1, 64, 0});
  ASSERT_TRUE(sut.admit(request_of(1, 4, 10)));
  ASSERT_TRUE(sut.admit(request_of(2, 4, 10)));
  sut.step();
  EXPECT_TRUE(sut.release({1})) << "running";
  EXPECT_TRUE(sut.release({2})) << "waiting";
  EXPECT_FALSE(sut.release({2}));
  EXPECT_FALSE(sut.has_work());
  EXPECT_EQ(sut.kv().free, blocks);
  EXPECT_TRUE(sut.step().empty());
}

TEST(engine, cuts_chunks_where_they_stand_and_keeps_their_kv) {
  auto sut = make_engine({2, 64, 0});
  for (std::uint64_t id = 1; id <= 3; ++id)
    ASSERT_TRUE(sut.admit(request_of(id, 4, 10)));
  for (int steps = 0; steps < 3; ++steps)
    ASSERT_TRUE(sut.step().empty());
  std::map<std::uint64_t, std::size_t> tokens;
  for (const auto& report : sut.cut()) {
    EXPECT_EQ(report.why, chunk_end::budget);
    EXPECT_EQ(report.logprobs.size(), report.tokens.size());
    tokens[report.response.value] = report.tokens.size();
  }
  EXPECT_EQ(tokens, (std::map<std::uint64_t, std::size_t>{{1, 3}, {2, 3}, {3, 0}}));
  EXPECT_FALSE(sut.has_work());
  EXPECT_TRUE(sut.parked({1}));
  EXPECT_TRUE(sut.parked({2}));
  EXPECT_FALSE(sut.parked({3})) << "it has not begun";
  EXPECT_EQ(sut.kv().parked, 2u);
  EXPECT_EQ(sut.kv().free, blocks - 2);
  EXPECT_TRUE(sut.cut().empty());
}

TEST(block_pool, neither_loses_nor_doubles_a_block) {
  block_pool pool{5};
  std::vector<std::uint32_t> a, b;
  EXPECT_TRUE(pool.take(3, a));
  EXPECT_FALSE(pool.take(3, b));
  EXPECT_TRUE(b.empty());
  EXPECT_TRUE(pool.take(2, b));
  EXPECT_EQ(pool.free(), 0u);
  pool.give_back(a, 1);
  EXPECT_EQ(a.size(), 1u);
  EXPECT_EQ(pool.free(), 2u);
  pool.give_back(a);
  pool.give_back(b);
  std::vector<std::uint32_t> all;
  EXPECT_TRUE(pool.take(5, all));
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (std::vector<std::uint32_t>{0, 1, 2, 3, 4}));
}

} // namespace

} // namespace rollcast::test
