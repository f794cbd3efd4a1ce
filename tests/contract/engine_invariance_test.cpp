// Goal: a response is a function of its request alone: the same bits for every batch size, row
// budget, block size, thread count, chunk length, KV fate between chunks, preemption and
// instruction set; and scoring gives the bits of generation.
// Method: one mixed rollout per family and profile is run in a plain way and in every other way;
// tokens, log-probabilities and kept masses are compared with memcmp.

#include "engine/base/prng.hpp"
#include "tests/support/fixture_models.hpp"
#include "tests/support/rollout_driver.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace rollcast::test {

namespace {

/// Drafts the true continuation, known from an earlier run, with errors here and there.
class knowing_drafter final : public drafter {
public:
  using truth = std::map<std::uint64_t, finished_response>;
  knowing_drafter(const truth& known, std::uint32_t wrong_percent, std::uint32_t length_max)
    : known_(known), wrong_percent_(wrong_percent), length_max_(length_max) {}

  void draft(std::span<const draft_seat> seats, const step_load& load) override {
    auto left = load.rows_free;
    for (const auto& seat : seats) {
      const auto& r = known_.at(seat.response.value);
      const auto done = seat.tokens.size() - r.prompt.size();
      const auto length = std::min({left, seat.room, 1 + std::uint32_t(rng_.below(length_max_))});
      for (std::size_t i = done; i < done + length; ++i) {
        const auto right = i < r.tokens.size() ? r.tokens[i] : 0; // past the end: anything
        const auto node = static_cast<std::int32_t>(i - done);
        seat.draft->push_back(
          {rng_.below(100) < wrong_percent_ ? (right + 1) % 100 : right, node - 1, 0.5f});
      }
      left -= length;
    }
  }
  void learn(std::span<const draft_outcome> outcomes, const step_load&, double) override {
    for (const auto& o : outcomes) {
      EXPECT_LE(o.accepted, o.draft.size());
      EXPECT_GE(o.accepted + 1, o.fresh.size());
      accepted += o.accepted;
      rejected += o.draft.size() - o.accepted;
    }
  }

  std::uint64_t accepted = 0;
  std::uint64_t rejected = 0;

private:
  const truth& known_;
  std::uint32_t wrong_percent_;
  std::uint32_t length_max_;
  prng rng_{99};
};

struct setting {
  std::string name;
  cpu_backend_options device;
  engine_limits limits;
  drive how;
  std::size_t engines = 1;
  bool recomputes = false; ///< KV is dropped or has no room; else every token is computed once.
};

cpu_backend_options device_of(std::uint32_t threads, std::uint32_t blocks,
                              std::uint32_t block_tokens, std::uint32_t rows = 256) {
  cpu_backend_options options;
  options.threads = threads;
  options.kv_blocks = blocks;
  options.block_tokens = block_tokens;
  options.rows_max = rows;
  options.logit_rows_max = 64;
  return options;
}

const std::vector<setting> settings{
  {"batch of 1", device_of(1, 64, 16), {1, 256, 0}, {}},
  {"batch of 7, two threads", device_of(2, 256, 16), {7, 256, 0}, {}},
  {"batch of 64, rows of 16", device_of(1, 512, 32, 64), {64, 64, 0}, {}},
  {"rows of 19, blocks of 64", device_of(1, 64, 64, 19), {16, 19, 0}, {}},
  {"chunks of 16", device_of(1, 256, 16), {64, 256, 0}, {16}},
  {"chunks of 7, KV dropped",
   device_of(1, 256, 32),
   {8, 33, 0},
   {7, true, between_chunks::drop},
   1,
   true},
  {"chunks of 5, KV moved", device_of(1, 128, 16), {8, 64, 0}, {5, true, between_chunks::move}, 3},
  {"KV moved, small pool",
   device_of(2, 16, 16),
   {8, 64, 0},
   {16, true, between_chunks::move},
   2,
   true},
  {"preemption", device_of(1, 24, 16), {16, 64, 0}, {0, false}, 1, true},
};

std::map<std::uint64_t, finished_response>
run_setting(const std::shared_ptr<const model_weights>& weights, std::string_view profile,
            const rollout& work, const setting& s,
            const std::shared_ptr<drafter>& speculator = {}) {
  std::vector<engine> engines;
  for (std::size_t i = 0; i < s.engines; ++i) {
    engines.emplace_back(make_device(weights, profile, s.device), s.limits);
    engines.back().speculate(speculator);
  }
  auto done = run_rollout(work, engines, s.how);
  if (s.name == "preemption") {
    EXPECT_GT(engines[0].stats().preemptions, 0u) << "the pool is too large to test anything";
  }
  std::uint64_t recomputed = 0;
  for (const auto& e : engines)
    recomputed += e.stats().recomputed_tokens;
  // KV that is not believed is computed again, with the same bits: only this tells.
  if (s.recomputes)
    EXPECT_GT(recomputed, 0u) << s.name;
  else
    EXPECT_EQ(recomputed, 0u) << s.name;
  return done;
}

class engine_contract : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
protected:
  std::string family() const { return std::get<0>(GetParam()); }
  std::string profile() const { return std::get<1>(GetParam()); }
  std::shared_ptr<const model_weights> weights = load_weights(fixture_model(family()), profile());
  rollout work = mixed_rollout(static_cast<std::uint32_t>(weights->config().vocabulary), 24, 60, 5);
  setting plain{"plain", device_of(1, 1024, 16), {1, 256, 0}, {}};
};

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

TEST_P(engine_contract, drafts_right_and_wrong_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  for (const auto& s : settings)
    for (const std::uint32_t wrong_percent : {0u, 30u, 100u}) {
      auto speculator = std::make_shared<knowing_drafter>(expected, wrong_percent, 9);
      const auto got = run_setting(weights, profile(), work, s, speculator);
      for (const auto& [id, response] : expected)
        EXPECT_TRUE(same_bits(response, got.at(id)))
          << s.name << ", " << wrong_percent << " % wrong, response " << id;
      EXPECT_EQ(speculator->accepted > 0, wrong_percent < 100) << s.name;
      EXPECT_TRUE(speculator->rejected > 0 || wrong_percent == 0) << s.name;
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
  std::vector<std::byte> image;
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

INSTANTIATE_TEST_SUITE_P(families, engine_contract,
                         ::testing::Combine(::testing::ValuesIn(fixture_families),
                                            ::testing::Values("cpu-f32-v1", "cpu-bf16-v1")),
                         [](const auto& info) {
                           std::string name =
                             std::get<0>(info.param) + "_" + std::get<1>(info.param);
                           for (char& c : name)
                             c = c == '-' ? '_' : c;
                           return name;
                         });

} // namespace

} // namespace rollcast::test
