#pragma once

#include "engine/base/ids.hpp"
#include "engine/draft/drafter.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace rollcast {

/// What the drafts of one step would have brought, had they been verified: they get no rows, and
/// are compared with what the responses write all the same. So drafts that are shut out, or too
/// unlikely, are judged for the price of looking them up.
class rehearsal {
public:
  /// One response's draft, and what became of it.
  struct part {
    response_id response;
    std::vector<draft_token> draft;
    std::size_t chosen = 0;      ///< So many of its nodes would have got a row: the first.
    std::vector<token_id> fresh; ///< Written since: the accepted, and one more when it is `over`.
    std::uint32_t accepted = 0;
    std::uint32_t brought = 0; ///< Of the accepted, those that would have got a row.
    std::int32_t at = -1;      ///< The node accepted last.
    bool over = false;
  };
  /// What the step would have made, and taken.
  struct outcome {
    std::uint32_t rows = 0; ///< Without drafts.
    std::size_t seats = 0;
    std::size_t tokens = 0;
    double plain_s = 0;   ///< Of the step without drafts.
    double drafted_s = 0; ///< 0: no draft was chosen.
  };

  bool running() const noexcept { return steps_left_ > 0; }
  void stop() noexcept { steps_left_ = 0; }

  /// Begins one, without drafts yet. @param would  All but `tokens`. @param depth  Of the deepest.
  void begin(const outcome& would, std::span<const draft_seat> seats, std::uint32_t depth);
  /// Where the draft of a seat goes, and how much of it was chosen.
  part& of(std::size_t seat) { return parts_[seat]; }

  /// Hears what a step wrote. @returns the result, once every draft has proved wrong or came to its
  /// end; who wrote nothing for so long counts with what there is.
  std::optional<outcome> hear(std::span<const draft_outcome> outcomes);

  /// Of the one that ran last, over or not.
  std::span<const part> parts() const noexcept { return {parts_.data(), used_}; }

private:
  static void take(part& p, token_id token);

  std::vector<part> parts_; ///< The first `used_`; the others keep their memory.
  std::size_t used_ = 0;
  outcome would_;
  std::uint32_t steps_left_ = 0;
};

} // namespace rollcast
