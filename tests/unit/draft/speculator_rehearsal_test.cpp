// Goal: drafts that the clock has shut out come back when what is written begins to repeat itself.
// Method: one response beside siblings, the engine's calls and its clock played by the test; drafts
// do not pay as long as it writes what nobody wrote.

#include "engine/draft/speculator.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace rollcast {
namespace {

using tokens = std::vector<token_id>;

/// Steps of a tenth of a second, of which a drafted row takes one percent more.
const step_costs costs{{{1, 0.1}, {101, 0.2}}, {}};

struct written {
  std::size_t steps = 0;
  std::size_t with_drafts = 0;
};

/// Writes until `own` is `text`, keeping of each draft what is right.
written write(speculator& by, tokens& own, const tokens& text) {
  written out;
  std::vector<draft_token> draft;
  while (own.size() < text.size()) {
    draft.clear();
    const draft_seat seat{{1}, own, static_cast<std::uint32_t>(text.size() - own.size()), &draft};
    const step_load load{1, 100, own.size(), static_cast<std::uint32_t>(own.size())};
    by.draft({&seat, 1}, load);
    const auto begin = own.size();
    std::uint32_t accepted = 0;
    while (accepted < draft.size() && own.size() + 1 < text.size()
           && draft[accepted].token == text[own.size()]) {
      own.push_back(text[own.size()]);
      ++accepted;
    }
    own.push_back(text[own.size()]);
    const auto rows = static_cast<std::uint32_t>(1 + draft.size());
    const draft_outcome outcome{{1}, draft, accepted, std::span{own}.subspan(begin)};
    by.learn({&outcome, 1}, load, costs.first_seconds({rows, 0}));
    ++out.steps;
    out.with_drafts += !draft.empty();
  }
  return out;
}

TEST(speculator, drafts_that_are_shut_out_come_back_when_they_would_be_right) {
  speculator by{{.how = speculation::auto_, .tokens_max = 4}, costs};
  // Every pair of tokens that the response writes at first was written before, and went on with
  // others.
  tokens misleading, own, text;
  for (token_id i = 0; i < 600; ++i) {
    text.insert(text.end(), {100 + i, 5000 + i});
    misleading.insert(misleading.end(), {100 + i, 5000 + i, 9000 + i, 9000 + i, 9000 + i});
  }
  by.follow({2}, {7}, false, misleading);
  own.assign(text.begin(), text.begin() + 2);
  by.follow({1}, {7}, false, own);
  const auto vain = write(by, own, text);
  EXPECT_GT(vain.with_drafts, 0u);
  EXPECT_LT(vain.with_drafts, vain.steps / 4);

  // From here on a sibling has written it all.
  tokens known;
  for (token_id i = 0; i < 400; ++i)
    known.push_back(20'000 + i * 7);
  by.follow({3}, {7}, false, known);
  text.insert(text.end(), known.begin(), known.end());
  const auto good = write(by, own, text);
  EXPECT_LT(good.steps, 300u) << "of 400 tokens, 80 at best; a quarter of the hold is sure";
}

} // namespace
} // namespace rollcast
