#pragma once

#include "engine/base/prng.hpp"
#include "engine/draft/drafter.hpp"
#include "tests/support/rollout_driver.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

namespace rollcast::test {

/// What a `knowing_drafter` drafts.
struct knowing_options {
  std::uint32_t wrong_percent = 0;  ///< Of the tokens that could be right.
  std::uint32_t nodes_max = 9;      ///< Of one draft.
  std::uint32_t branch_percent = 0; ///< Nodes that follow any earlier one, not the one before.
};

/// Drafts the true continuation, known from an earlier run, with errors here and there, as trees of
/// any shape: siblings that are equal, branches of wrong tokens, branches of branches.
class knowing_drafter final : public drafter {
public:
  using truth = std::map<std::uint64_t, finished_response>;
  knowing_drafter(const truth& known, knowing_options how) : known_(known), how_(how) {}

  void draft(std::span<const draft_seat> seats, const step_load& load) override {
    auto left = load.rows_free;
    for (const auto& seat : seats) {
      fill(seat, std::min(left, 1 + static_cast<std::uint32_t>(rng_.below(how_.nodes_max))));
      left -= static_cast<std::uint32_t>(seat.draft->size());
    }
  }

  void learn(std::span<const draft_outcome> outcomes, const step_load&, double) override {
    for (const auto& o : outcomes) {
      EXPECT_LE(o.accepted, o.draft.size());
      EXPECT_GE(o.accepted + 1, o.fresh.size());
      accepted += o.accepted;
      rejected += o.draft.size() - o.accepted;
      std::int32_t node = -1;
      bool jumped = false;
      for (std::uint32_t depth = 0; depth < o.accepted; ++depth) {
        auto child = static_cast<std::size_t>(node + 1);
        while (child < o.draft.size()
               && (o.draft[child].parent != node || o.draft[child].token != o.fresh[depth]))
          ++child;
        ASSERT_LT(child, o.draft.size()) << "what was accepted is a path of the draft";
        jumped |= static_cast<std::int32_t>(child) != node + 1;
        node = static_cast<std::int32_t>(child);
      }
      branches += jumped;
    }
  }

  std::uint64_t accepted = 0;
  std::uint64_t rejected = 0;
  std::uint64_t branches = 0; ///< Times that the accepted path was not the first one.

private:
  struct made {
    std::size_t depth = 0;
    bool right = false; ///< It and all before it.
  };

  void fill(const draft_seat& seat, std::uint32_t nodes) {
    const auto& r = known_.at(seat.response.value);
    const auto done = seat.tokens.size() - r.prompt.size();
    std::vector<made> tree;
    std::int32_t deepest = -1; // of the right ones: from it the truth goes on
    for (std::uint32_t i = 0; i < nodes; ++i) {
      auto parent = static_cast<std::int32_t>(i) - 1;
      if (rng_.below(100) < how_.branch_percent)
        parent = rng_.chance(50) ? deepest : static_cast<std::int32_t>(rng_.below(i + 1)) - 1;
      const made above = parent < 0 ? made{0, true} : tree[static_cast<std::size_t>(parent)];
      if (above.depth == seat.room)
        return;
      const auto at = done + above.depth;
      const token_id truth = at < r.tokens.size() ? r.tokens[at] : 0; // past the end: anything
      const bool wrong = rng_.below(100) < how_.wrong_percent;
      const auto slip = 1 + static_cast<token_id>(rng_.below(3));
      seat.draft->push_back({wrong ? (truth + slip) % 100 : truth, parent, 0.5f});
      tree.push_back({above.depth + 1, above.right && !wrong});
      const auto known = deepest < 0 ? 0 : tree[static_cast<std::size_t>(deepest)].depth;
      if (tree.back().right && tree.back().depth > known)
        deepest = static_cast<std::int32_t>(i);
    }
  }

  const truth& known_;
  knowing_options how_;
  prng rng_{99};
};

} // namespace rollcast::test
