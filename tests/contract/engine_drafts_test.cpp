// Goal: no draft changes a bit of a response: not a right one, not a wrong one, not a tree.
// Method: the mixed rollout runs without drafts, and with drafts that know the truth and lie as
// often as they are told, in every setting of the engine; results are compared with memcmp.

#include "tests/contract/engine_settings.hpp"
#include "tests/contract/knowing_drafter.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>

namespace rollcast::test {

namespace {

using engine_drafts = engine_contract;

TEST_P(engine_drafts, chains_right_and_wrong_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  for (const auto& s : settings)
    for (const std::uint32_t wrong_percent : {0u, 30u, 100u}) {
      auto by = std::make_shared<knowing_drafter>(expected, knowing_options{wrong_percent, 9, 0});
      const auto got = run_setting(weights, profile(), work, s, by);
      for (const auto& [id, response] : expected)
        EXPECT_TRUE(same_bits(response, got.at(id)))
          << s.name << ", " << wrong_percent << " % wrong, response " << id;
      EXPECT_EQ(by->accepted > 0, wrong_percent < 100) << s.name;
      EXPECT_TRUE(by->rejected > 0 || wrong_percent == 0) << s.name;
      EXPECT_EQ(by->branches, 0u);
    }
}

TEST_P(engine_drafts, trees_right_and_wrong_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  for (const auto& s : settings)
    for (const std::uint32_t wrong_percent : {30u, 100u}) {
      auto by = std::make_shared<knowing_drafter>(expected, knowing_options{wrong_percent, 24, 40});
      const auto got = run_setting(weights, profile(), work, s, by);
      for (const auto& [id, response] : expected)
        EXPECT_TRUE(same_bits(response, got.at(id)))
          << s.name << ", " << wrong_percent << " % wrong, response " << id;
      EXPECT_EQ(by->accepted > 0, wrong_percent < 100) << s.name;
      EXPECT_EQ(by->branches > 0, wrong_percent < 100) << s.name << " tests no branch";
    }
}

TEST_P(engine_drafts, deep_narrow_trees_cross_blocks_and_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  for (const auto& s : settings) {
    auto by = std::make_shared<knowing_drafter>(expected, knowing_options{10, 60, 25});
    const auto got = run_setting(weights, profile(), work, s, by);
    for (const auto& [id, response] : expected)
      EXPECT_TRUE(same_bits(response, got.at(id))) << s.name << ", response " << id;
    EXPECT_GT(by->accepted, 0u) << s.name;
  }
}

/// Notes what it is told of hidden states, and drafts what another does.
class listening_drafter final : public drafter {
public:
  listening_drafter(std::shared_ptr<drafter> by, std::size_t hidden)
    : by_(std::move(by)), width_(2 * hidden) {}
  state_wish wants_states() const override { return {{1}, true}; }
  void draft(std::span<const draft_seat> seats, const step_load& load) override {
    if (by_)
      by_->draft(seats, load);
  }
  void see(std::span<const seen_rows> seen, std::span<const float> states) override {
    for (const auto& s : seen)
      for (std::uint32_t i = 0; i < s.rows.size(); ++i) {
        const auto row = states.subspan(s.rows[i] * width_, width_);
        auto& known = heard[{s.response.value, s.position + i}];
        EXPECT_TRUE(known.state.empty()
                    || std::equal(known.state.begin(), known.state.end(), row.begin()))
          << "a position that comes again has the same state";
        known = {{row.begin(), row.end()}, s.next[i]};
      }
  }
  void gone(response_id response, std::span<const token_id> /*tokens*/) override {
    ended.insert(response.value);
  }
  void learn(std::span<const draft_outcome> outcomes, const step_load& load,
             double seconds) override {
    if (by_)
      by_->learn(outcomes, load, seconds);
  }

  struct heard_row {
    std::vector<float> state;
    token_id next = 0;
  };
  std::map<std::pair<std::uint64_t, std::uint32_t>, heard_row> heard;
  std::set<std::uint64_t> ended;

private:
  std::shared_ptr<drafter> by_;
  std::size_t width_;
};

TEST_P(engine_drafts, hidden_states_that_a_drafter_asks_for_are_those_of_single_token_decode) {
  const auto hidden = weights->config().hidden;
  const auto one_by_one = std::make_shared<listening_drafter>(nullptr, hidden);
  const auto expected = run_setting(weights, profile(), work, plain, one_by_one);
  for (const auto& s : {settings[1], settings[3], settings[4]}) {
    const auto trees = std::make_shared<listening_drafter>(
      std::make_shared<knowing_drafter>(expected, knowing_options{30, 24, 40}), hidden);
    (void)run_setting(weights, profile(), work, s, trees);
    for (const auto& [id, response] : expected) {
      const auto end = static_cast<std::uint32_t>(response.prompt.size() + response.tokens.size());
      for (std::uint32_t at = 0; at + 1 < end; ++at) {
        ASSERT_TRUE(one_by_one->heard.contains({id, at}) && trees->heard.contains({id, at}))
          << s.name << ", response " << id << ", position " << at;
        const auto& want = one_by_one->heard.at({id, at});
        const auto& got = trees->heard.at({id, at});
        EXPECT_EQ(want.next, got.next);
        EXPECT_EQ(want.next, at + 1 < response.prompt.size()
                               ? response.prompt[at + 1]
                               : response.tokens[at + 1 - response.prompt.size()]);
        EXPECT_EQ(
          0, std::memcmp(want.state.data(), got.state.data(), want.state.size() * sizeof(float)))
          << s.name << ", response " << id << ", position " << at;
      }
      EXPECT_TRUE(trees->ended.contains(id)) << s.name << ", response " << id;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(families, engine_drafts, every_model(), name_of_model);

} // namespace

} // namespace rollcast::test
