#include "cluster/drafts/shared_drafter.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace rollcast {
namespace {

/// Most tokens of siblings that one step takes in: some tenths of a millisecond to index, now or
/// when something is looked up. More wait.
constexpr std::size_t heard_tokens_max = 2'048;

/// Of so many groups that are over, what still comes is dropped. Of others it would be kept, until
/// the speculator needs the memory.
constexpr std::size_t over_max = 256;

} // namespace

shared_drafter::shared_drafter(std::shared_ptr<speculator> drafts, std::unique_ptr<draft_link> link,
                               stale_function stale)
  : drafts_(std::move(drafts)), link_(std::move(link)), stale_(std::move(stale)) {}

void shared_drafter::follow(response_id response, group_id group, std::uint32_t prompt_tokens,
                            std::span<const token_id> tokens) {
  const auto name = draft_group_of(group, tokens.first(prompt_tokens));
  running_[response] = {name, static_cast<std::uint32_t>(tokens.size())};
  link_->follow(group, name, response, tokens);
}

void shared_drafter::leave(response_id response) {
  if (const auto it = running_.find(response); it != running_.end()) {
    link_->leave(it->second.name, response);
    running_.erase(it);
  }
}

void shared_drafter::forget(group_id group) {
  drafts_->forget(group);
  over_.push_back(group);
  if (over_.size() > over_max)
    over_.pop_front();
}

void shared_drafter::hear() {
  link_->collect(heard_tokens_max, heard_);
  const auto now = std::chrono::steady_clock::now();
  for (const auto& h : heard_) {
    if (running_.contains(h.response) // what it writes here is what counts
        || std::find(over_.begin(), over_.end(), h.group) != over_.end())
      continue;
    const auto end = drafts_->hear(h.group, h.response, h.position, h.tokens);
    if (end < h.position)
      link_->lost(h.name, h.response, end); // its group was forgotten for want of memory
    else if (h.age_us != draft_age_replayed)
      stale_(std::chrono::duration<double>(now - h.arrived).count() + 1e-6 * h.age_us);
  }
}

void shared_drafter::draft(std::span<const draft_seat> seats, const step_load& load) {
  hear();
  drafts_->draft(seats, load);
}

void shared_drafter::learn(std::span<const draft_outcome> outcomes, const step_load& load,
                           double seconds) {
  drafts_->learn(outcomes, load, seconds);
  for (const auto& o : outcomes) {
    const auto it = running_.find(o.response);
    if (it == running_.end())
      continue;
    link_->wrote(it->second.name, o.response, it->second.position, o.fresh);
    it->second.position += static_cast<std::uint32_t>(o.fresh.size());
  }
}

} // namespace rollcast
