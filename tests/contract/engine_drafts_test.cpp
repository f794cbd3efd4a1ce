// Goal: no draft changes a bit of a response: not a right one, not a wrong one, not a tree.
// Method: the mixed rollout runs without drafts, and with drafts that know the truth and lie as
// often as they are told, in every setting of the engine; results are compared with memcmp.

#include "tests/contract/engine_settings.hpp"
#include "tests/contract/knowing_drafter.hpp"

#include <gtest/gtest.h>

#include <cstring>

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
  explicit listening_drafter(std::shared_ptr<drafter> by) : by_(std::move(by)) {}
  bool wants_hidden() const noexcept override { return true; }
  void draft(std::span<const draft_seat> seats, const step_load& load) override {
    if (by_)
      by_->draft(seats, load);
  }
  void learn(std::span<const draft_outcome> outcomes, const step_load& load,
             double seconds) override {
    for (const auto& o : outcomes) {
      auto& all = heard[o.response.value];
      EXPECT_EQ(o.hidden.size() % o.fresh.size(), 0u);
      all.insert(all.end(), o.hidden.begin(), o.hidden.end());
    }
    if (by_)
      by_->learn(outcomes, load, seconds);
  }
  std::map<std::uint64_t, std::vector<float>> heard;

private:
  std::shared_ptr<drafter> by_;
};

TEST_P(engine_drafts, hidden_states_that_a_drafter_asks_for_are_those_of_single_token_decode) {
  const auto one_by_one = std::make_shared<listening_drafter>(nullptr);
  const auto expected = run_setting(weights, profile(), work, plain, one_by_one);
  const auto trees = std::make_shared<listening_drafter>(
    std::make_shared<knowing_drafter>(expected, knowing_options{30, 24, 40}));
  (void)run_setting(weights, profile(), work, settings[1], trees);
  for (const auto& [id, response] : expected) {
    const auto& want = one_by_one->heard.at(id);
    const auto& got = trees->heard.at(id);
    ASSERT_EQ(want.size(), response.tokens.size() * weights->config().hidden);
    ASSERT_EQ(want.size(), got.size());
    EXPECT_EQ(0, std::memcmp(want.data(), got.data(), want.size() * sizeof(float))) << id;
  }
}

INSTANTIATE_TEST_SUITE_P(families, engine_drafts, every_model(), name_of_model);

} // namespace

} // namespace rollcast::test
