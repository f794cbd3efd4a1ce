#include "engine/draft/rehearsal.hpp"

#include <algorithm>

namespace rollcast {

void rehearsal::begin(const outcome& would, std::span<const draft_seat> seats,
                      std::uint32_t depth) {
  would_ = would;
  steps_left_ = depth + 1;
  used_ = seats.size();
  parts_.resize(std::max(parts_.size(), used_));
  for (std::size_t i = 0; i < used_; ++i) {
    auto& p = parts_[i];
    p.response = seats[i].response;
    p.draft.clear();
    p.chosen = 0;
    p.fresh.clear();
    p.accepted = p.brought = 0;
    p.at = -1;
    p.over = false;
  }
}

void rehearsal::take(part& p, token_id token) {
  p.fresh.push_back(token);
  for (auto i = static_cast<std::size_t>(p.at + 1); i < p.draft.size(); ++i)
    if (p.draft[i].parent == p.at && p.draft[i].token == token) {
      p.at = static_cast<std::int32_t>(i);
      ++p.accepted;
      p.brought += i < p.chosen ? 1 : 0;
      return;
    }
  p.over = true;
}

std::optional<rehearsal::outcome> rehearsal::hear(std::span<const draft_outcome> outcomes) {
  if (!running())
    return std::nullopt;
  bool all = true;
  auto o = outcomes.begin(); // both are in the order of seats, nearly always
  for (std::size_t i = 0; i < used_; ++i) {
    auto& p = parts_[i];
    const auto is_its = [&](const draft_outcome& of) { return of.response == p.response; };
    auto found = std::find_if(o, outcomes.end(), is_its);
    if (found == outcomes.end())
      found = std::find_if(outcomes.begin(), o, is_its);
    if (found != outcomes.end() && is_its(*found)) {
      for (std::size_t t = 0; !p.over && t < found->fresh.size(); ++t)
        take(p, found->fresh[t]);
      o = found;
    }
    all = all && p.over;
  }
  if (--steps_left_ > 0 && !all)
    return std::nullopt;
  steps_left_ = 0;
  auto out = would_;
  out.tokens = would_.seats;
  for (const auto& p : parts())
    out.tokens += p.brought;
  return out;
}

} // namespace rollcast
