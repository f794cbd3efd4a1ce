// Goal: where drafts have crashed engines in the field, a response has the bits it has without.
// Method: a drafter that knows the truth goes on past every bound it is told of; results are
// compared with memcmp, and every block must come back.

#include "engine/model/checkpoint.hpp"
#include "engine/model/random_model.hpp"
#include "tests/contract/engine_settings.hpp"
#include "tests/contract/poisoning_backend.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <utility>

namespace rollcast::test {

namespace {

/// Drafts the true continuation and more of it than there is room for, and beside each token a
/// branch of a wrong one and a token that does not exist.
class rude_drafter final : public drafter {
public:
  using truth = std::map<std::uint64_t, finished_response>;
  explicit rude_drafter(const truth& known, std::size_t more = 40) : known_(known), more_(more) {}

  void draft(std::span<const draft_seat> seats, const step_load& load) override {
    seen += seats.size();
    least_seats = std::min(least_seats, seats.size());
    for (const auto& seat : seats) {
      const auto& r = known_.at(seat.response.value);
      const auto done = seat.tokens.size() - r.prompt.size();
      std::int32_t parent = -1;
      for (std::size_t i = done; i < done + more_; ++i) {
        const token_id right = i < r.tokens.size() ? r.tokens[i] : r.tokens.back();
        // Every other right token comes behind its wrong brother: the path that wins is a branch.
        if (i % 2 == 0)
          seat.draft->push_back({(right + 1) % 100, parent, 0.5f});
        const auto here = static_cast<std::int32_t>(seat.draft->size());
        seat.draft->push_back({right, parent, 0.5f});
        seat.draft->push_back({std::numeric_limits<token_id>::max(), parent, 0.5f});
        parent = here;
      }
      too_deep += more_ > seat.room;
      too_many += seat.draft->size() > load.rows_free;
    }
  }
  void learn(std::span<const draft_outcome> outcomes, const step_load&, double) override {
    for (const auto& o : outcomes)
      accepted += o.accepted;
  }

  std::size_t seen = 0;
  std::size_t least_seats = 1'000;
  std::size_t too_deep = 0;
  std::size_t too_many = 0;
  std::size_t accepted = 0;

private:
  const truth& known_;
  std::size_t more_;
};

constexpr std::uint32_t blocks = 128;

class drafts_in_the_field : public engine_contract {
protected:
  drafts_in_the_field() { work.resize(8); }

  engine make(engine_limits limits = {16, 128, 0}) {
    return {make_device(weights, profile(), device_of(1, blocks, 16)), limits};
  }
  /// Runs `work` with the drafter, or without. Every block must be free in the end.
  std::map<std::uint64_t, finished_response> run(const std::shared_ptr<drafter>& by,
                                                 const drive& how = {},
                                                 engine_limits limits = {16, 128, 0}) {
    std::vector<engine> engines;
    engines.push_back(make(limits));
    engines[0].speculate(by);
    auto done = run_rollout(work, engines, how);
    EXPECT_EQ(engines[0].kv().free, blocks);
    return done;
  }
  /// One chunk of `tokens` of all of `work`, behind what `done` has of it.
  void run_chunks(engine& on, std::uint32_t tokens,
                  std::map<std::uint64_t, finished_response>& done) {
    for (auto request : work) {
      auto& of = done[request.response.value];
      of.prompt = request.tokens;
      request.tokens.insert(request.tokens.end(), of.tokens.begin(), of.tokens.end());
      request.generate_max = tokens;
      ASSERT_TRUE(on.admit(std::move(request)));
    }
    while (on.has_work())
      for (const auto& report : on.step()) {
        auto& of = done[report.response.value];
        of.tokens.insert(of.tokens.end(), report.tokens.begin(), report.tokens.end());
        of.logprobs.insert(of.logprobs.end(), report.logprobs.begin(), report.logprobs.end());
        of.why = report.why;
      }
  }
  /// Runs `work` with the drafter, or without; after 9 tokens the engine takes other weights.
  std::map<std::uint64_t, finished_response> run_across_a_flip(const std::shared_ptr<drafter>& by,
                                                               const std::filesystem::path& to) {
    std::map<std::uint64_t, finished_response> done;
    auto sut = make();
    sut.speculate(by);
    run_chunks(sut, 9, done);
    auto prepared = sut.device().prepare_weights(*checkpoint::open(to), {}, {});
    EXPECT_TRUE(prepared && sut.use_weights(*prepared));
    run_chunks(sut, 40, done);
    EXPECT_EQ(sut.kv().free, blocks);
    return done;
  }
  void expect_same(const std::map<std::uint64_t, finished_response>& expected,
                   const std::map<std::uint64_t, finished_response>& got) {
    for (const auto& [id, response] : expected)
      EXPECT_TRUE(same_bits(response, got.at(id))) << "response " << id;
  }
};

TEST_P(drafts_in_the_field, sglang_28569_25512_25529_vllm_43682_batch_shrinks_to_one) {
  for (std::uint32_t i = 0; i < work.size(); ++i) {
    work[i].sampling.max_new_tokens = work[i].sampling.min_new_tokens = i == 3 ? 60 : 4 + i;
    work[i].sampling.stop_token_ids.clear();
  }
  const auto expected = run({});
  const auto by = std::make_shared<rude_drafter>(expected, 3);
  expect_same(expected, run(by));
  EXPECT_EQ(by->least_seats, 1u);
  EXPECT_GT(by->accepted, 40u);
  // And by cancelling: all but one go while their drafts are in flight.
  auto sut = make();
  sut.speculate(by);
  for (auto request : work) {
    request.generate_max = request.sampling.max_new_tokens;
    ASSERT_TRUE(sut.admit(request));
  }
  sut.step();
  for (const auto& request : work)
    if (request.response.value != 4)
      sut.release(request.response);
  std::vector<token_id> tokens;
  while (sut.has_work())
    for (const auto& report : sut.step())
      tokens.assign(report.tokens.begin(), report.tokens.end());
  EXPECT_EQ(tokens, expected.at(4).tokens);
  EXPECT_EQ(sut.kv().free, blocks);
}

TEST_P(drafts_in_the_field, draft_longer_than_the_remaining_budget) {
  for (auto& request : work) {
    request.sampling.max_new_tokens = 5;
    request.sampling.min_new_tokens = 0;
  }
  const auto expected = run({});
  const auto by = std::make_shared<rude_drafter>(expected);
  expect_same(expected, run(by));
  EXPECT_EQ(by->too_deep, by->seen);
  EXPECT_GT(by->too_many, 0u) << "not enough rows for it either";
  EXPECT_GT(by->accepted, 0u);
}

TEST_P(drafts_in_the_field, draft_across_a_chunk_edge) {
  const auto expected = run({});
  for (const std::uint32_t chunk : {1u, 2u, 5u, 16u}) {
    const auto by = std::make_shared<rude_drafter>(expected);
    expect_same(expected, run(by, {chunk}));
    EXPECT_EQ(by->too_deep, by->seen);
    EXPECT_EQ(by->accepted > 0, chunk > 1);
  }
}

// In the middle of the responses: each one's first chunk is of the weights before.
TEST_P(drafts_in_the_field, draft_across_a_weight_epoch) {
  for (auto& request : work)
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 40;
  const temporary_directory directory;
  ASSERT_TRUE(write_random_model(directory.path(), weights->config(), 77, kernels::dtype::bf16));
  const auto expected = run_across_a_flip({}, directory.path());
  const auto by = std::make_shared<rude_drafter>(expected, 3);
  expect_same(expected, run_across_a_flip(by, directory.path()));
  EXPECT_GT(by->accepted, expected.size());
  // What is drafted after the flip is what the old weights would have said.
  const auto unchanged = run({});
  const auto stale = std::make_shared<rude_drafter>(unchanged, 3);
  expect_same(expected, run_across_a_flip(stale, directory.path()));
  EXPECT_LT(stale->accepted, by->accepted) << "the new weights say the same: this proves nothing";
}

TEST_P(drafts_in_the_field, draft_past_the_context_limit) {
  std::uint32_t longest = 0;
  for (auto& request : work) {
    request.sampling.max_new_tokens = 1'000;
    request.sampling.min_new_tokens = 0;
    longest = std::max(longest, request.prompt_tokens);
  }
  const engine_limits limits{16, 128, longest + 20};
  const auto expected = run({}, {0, false}, limits);
  const auto by = std::make_shared<rude_drafter>(expected, 60);
  expect_same(expected, run(by, {0, false}, limits));
  std::size_t at_the_limit = 0;
  for (const auto& [id, response] : expected)
    at_the_limit += response.prompt.size() + response.tokens.size() == limits.context_max;
  EXPECT_GT(at_the_limit, 0u) << "nobody gets there";
  EXPECT_GT(by->accepted, 0u);
}

TEST_P(drafts_in_the_field, draft_containing_a_stop_token) {
  for (auto& request : work) {
    request.sampling.max_new_tokens = 60;
    request.sampling.min_new_tokens = 0;
    request.sampling.stop_token_ids.clear();
    request.sampling.ignore_eos = true;
  }
  // What is drafted goes on behind the stop token: it is what would come without one.
  const auto endless = run({});
  for (auto& request : work)
    request.sampling.stop_token_ids = {endless.at(request.response.value).tokens[9]};
  auto expected = run({});
  auto by = std::make_shared<rude_drafter>(endless);
  expect_same(expected, run(by));
  for (const auto& [id, response] : expected) {
    EXPECT_EQ(response.why, chunk_end::stop);
    EXPECT_LE(response.tokens.size(), 10u);
  }
  EXPECT_GT(by->accepted, 0u);
  // Before min_new_tokens it is not chosen, however right it looks in the draft.
  for (auto& request : work)
    request.sampling.min_new_tokens = 15;
  expected = run({});
  by = std::make_shared<rude_drafter>(endless);
  expect_same(expected, run(by));
}

TEST_P(drafts_in_the_field, branches_borrow_blocks_for_no_longer_than_a_step) {
  for (auto& request : work)
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 30;
  const auto expected = run({});
  const auto by = std::make_shared<rude_drafter>(expected, 8);
  auto sut = make();
  sut.speculate(by);
  auto request = work[0];
  request.generate_max = request.sampling.max_new_tokens;
  ASSERT_TRUE(sut.admit(request));
  const auto reserved = sut.kv().running;
  for (sut.step(); sut.has_work(); sut.step()) {
    EXPECT_EQ(sut.kv().running, reserved);
    EXPECT_EQ(sut.kv().free, blocks - reserved);
  }
  EXPECT_GT(by->accepted, 10u);
}

TEST_P(drafts_in_the_field, sglang_9888_6309_8296_8336_9521_24401_poisoned_rows_of_a_batch) {
  const auto expected = run({});
  for (const bool drafts : {false, true}) {
    const auto by = std::make_shared<rude_drafter>(expected, 5);
    auto device = std::make_unique<poisoning_backend>(
      make_device(weights, profile(), device_of(1, blocks, 16)), weights->config());
    const auto* poison = device.get();
    std::vector<engine> engines;
    engines.emplace_back(std::move(device), engine_limits{16, 250, 0});
    if (drafts)
      engines[0].speculate(by);
    expect_same(expected, run_rollout(work, engines, {}));
    EXPECT_GT(poison->passes(), 5u);
    EXPECT_GT(poison->poisoned(), 10'000u);
    EXPECT_EQ(by->accepted > 0, drafts);
  }
}

INSTANTIATE_TEST_SUITE_P(families, drafts_in_the_field, every_model(), name_of_model);

} // namespace

} // namespace rollcast::test
