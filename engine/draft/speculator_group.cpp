#include "engine/draft/speculator.hpp"

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

namespace rollcast {

namespace {

/// Longest pause after look-ups that did not pay: what changes slowly is asked slowly.
constexpr std::uint32_t pause_max = 16;
/// What look-ups in vain may take of the time; cheaper ones need no pause.
constexpr double vain_share = 0.005;

} // namespace

void speculator::look_up(followed& f, const draft_seat& seat, std::uint32_t number) {
  const auto tokens_max =
    options_.tree_width > 1 ? options_.tokens_max : std::min(options_.tokens_max, seat.room);
  const auto& g = groups_.at(f.group);
  f.draft.clear();
  if (g.index.size(f.stream) != seat.tokens.size())
    return; // it was further already, elsewhere: what follows that is not what comes next here
  g.index.speculate(f.stream, {tokens_max, options_.tree_width, options_.survival_min}, f.draft);
  f.at.assign(f.draft.size(), -1);
  chances_.clear();
  depths_.clear();
  for (std::uint32_t node = 0; node < f.draft.size(); ++node) {
    const auto& given = f.draft[node];
    const auto parent = static_cast<std::size_t>(given.parent);
    const auto depth = given.parent < 0 ? 0 : depths_[parent] + 1;
    const auto above = given.parent < 0 ? 1.0f : chances_[parent];
    const auto survival =
      above
      * (options_.how == speculation::auto_ ? chance(g, depth, given.probability)
                                            : given.probability);
    depths_.push_back(depth);
    chances_.push_back(survival);
    if (survival >= options_.survival_min && depth < seat.room)
      candidates_.push_back({f.probe ? survival * probe_worth : survival, survival, number, node});
  }
}

std::size_t speculator::budget(const step_load& load, std::size_t seats) {
  const auto most = std::min<std::size_t>(candidates_.size(), load.rows_free);
  if (options_.how != speculation::auto_)
    return most;
  survivals_.clear();
  for (std::size_t i = 0; i < most; ++i)
    survivals_.push_back(candidates_[i].survival);
  std::sort(survivals_.begin(), survivals_.end(), std::greater<>{});
  return choose_budget(survivals_, static_cast<std::uint32_t>(seats), load, *costs_);
}

/// Looks up what may follow every seat, the best first.
void speculator::look_up_all(std::span<const draft_seat> seats) {
  for (std::uint32_t seat = 0; seat < seats.size(); ++seat)
    if (sitting_[seat] != nullptr)
      look_up(*sitting_[seat], seats[seat], seat);
  // No token is worth more than its parent, which has the lower number, so in this order every
  // prefix is made of whole trees. Ties by seat: no address decides.
  std::sort(candidates_.begin(), candidates_.end(), [](const candidate& a, const candidate& b) {
    if (a.worth != b.worth)
      return a.worth > b.worth;
    return a.seat != b.seat ? a.seat < b.seat : a.node < b.node;
  });
}

/// Looks up what the groups would draft, and how much of it pays. What is shut out is rehearsed.
void speculator::plan_group(std::span<const draft_seat> seats, const step_load& load) {
  candidates_.clear();
  chosen_ = 0;
  promised_ = 0;
  overdue_s_ = 0;
  held_ = options_.how == speculation::auto_ && !guard_.admits(load.rows);
  if (pause_left_ > 0 || (held_ && (rehearsal_.running() || rehearsal_debt_s_ > 0))) {
    pause_left_ -= pause_left_ > 0 ? 1 : 0;
    ++figures_.skipped;
    looked_ = false;
    return;
  }
  const auto begin = std::chrono::steady_clock::now();
  catch_up(seats);
  if (!looked_)
    overdue_s_ = seconds_since(begin);
  looked_ = true;
  look_up_all(seats);
  chosen_ = budget(load, seats.size());
  if (options_.how != speculation::auto_)
    return;
  const auto plain_s = costs_->seconds({load.rows, load.kv_tokens});
  const auto spent_s = seconds_since(begin);
  const bool found = std::any_of(sitting_.begin(), sitting_.end(), [](const followed* f) {
    return f != nullptr && !f->draft.empty();
  });
  // What does not pay now will not at the next step either.
  const auto most = static_cast<std::uint32_t>(
    std::min((spent_s - overdue_s_) / (vain_share * plain_s), double{pause_max}));
  pause_ = chosen_ > 0 || !found ? 0 : std::min(2 * pause_ + 1, most);
  pause_left_ = pause_;
  if (found && (held_ || chosen_ == 0) && !rehearsal_.running())
    rehearse(seats, load, spent_s - overdue_s_);
  if (held_) {
    rehearsal_debt_s_ = seconds_since(begin);
    chosen_ = 0;
  }
  for (std::size_t i = 0; i < chosen_; ++i)
    promised_ += static_cast<double>(candidates_[i].survival);
}

/// Writes the chosen tokens into the drafts of their seats.
template <class DraftOf>
void speculator::place(DraftOf&& draft_of) {
  for (std::size_t i = 0; i < chosen_; ++i) {
    const auto& c = candidates_[i];
    append(*sitting_[c.seat], c.node, draft_of(c.seat));
  }
}

/// Appends a node, whose parent is there, of what was looked up.
void speculator::append(followed& f, std::uint32_t number, std::vector<draft_token>& draft) {
  const auto& node = f.draft[number];
  f.at[number] = static_cast<std::int32_t>(draft.size());
  draft.push_back({node.token, node.parent < 0 ? -1 : f.at[static_cast<std::size_t>(node.parent)],
                   node.probability});
}

/// Compares what was looked up with what the seats will write. @param looking_s  What that took.
void speculator::rehearse(std::span<const draft_seat> seats, const step_load& load,
                          double looking_s) {
  rehearsal::outcome would{load.rows, seats.size(), 0, costs_->seconds({load.rows, load.kv_tokens}),
                           0};
  rehearsal_vain_s_ += looking_s;
  if (const auto drafted = static_cast<std::uint32_t>(chosen_); drafted > 0)
    would.drafted_s = std::exchange(rehearsal_vain_s_, 0)
                      + costs_->seconds({load.rows + drafted, load.kv_tokens,
                                         std::uint64_t{drafted} * load.seat_kv_tokens});
  rehearsal_.begin(would, seats, options_.tokens_max);
  place([&](std::size_t seat) -> auto& { return rehearsal_.of(seat).draft; });
  for (std::size_t seat = 0; seat < seats.size(); ++seat) {
    auto& part = rehearsal_.of(seat);
    part.chosen = part.draft.size();
    if (sitting_[seat] == nullptr)
      continue;
    auto& f = *sitting_[seat];
    for (std::uint32_t node = 0; node < f.draft.size(); ++node)
      if (f.at[node] < 0)
        append(f, node, part.draft);
  }
}

void speculator::commit_group(std::span<const draft_seat> seats) {
  place([&](std::size_t seat) -> auto& { return *seats[seat].draft; });
  for (const auto& seat : seats)
    figures_.drafts += seat.draft->empty() ? 0 : 1;
}

} // namespace rollcast
