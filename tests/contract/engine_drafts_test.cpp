// Goal: no draft changes a bit of a response: not a right one, not a wrong one, not a tree.
// Method: the mixed rollout runs without drafts, and with drafts that know the truth and lie as
// often as they are told, in every setting of the engine; results are compared with memcmp.

#include "tests/contract/engine_settings.hpp"
#include "tests/contract/knowing_drafter.hpp"

#include <gtest/gtest.h>

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

INSTANTIATE_TEST_SUITE_P(families, engine_drafts, every_model(), name_of_model);

} // namespace

} // namespace rollcast::test
