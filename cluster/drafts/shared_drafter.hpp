#pragma once

#include "cluster/drafts/draft_link.hpp"
#include "engine/draft/speculator.hpp"

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

namespace rollcast {

/// A speculator that also knows what siblings write on other workers: it tells a `draft_link` what
/// is generated here, and has the speculator hear what came from there before it drafts. Belongs to
/// the engine's thread.
class shared_drafter final : public drafter {
public:
  /// Hears how old, in seconds, a sibling's tokens are when they come to be used: what they waited
  /// for on the way, the network left out, because clocks of two machines differ.
  using stale_function = std::function<void(double)>;

  shared_drafter(std::shared_ptr<speculator> drafts, std::unique_ptr<draft_link> link,
                 stale_function stale);

  /// Tells what a response that will run here has so far, beside `speculator::follow`. Its first
  /// `prompt_tokens` are what the whole group begins with.
  void follow(response_id response, group_id group, std::uint32_t prompt_tokens,
              std::span<const token_id> tokens);
  /// It does not run here any more.
  void leave(response_id response);
  /// All its responses are over: forgotten, also what of it is still on its way.
  void forget(group_id group);

  state_wish wants_states() const override { return drafts_->wants_states(); }
  bool sees() const override { return drafts_->sees(); }
  void use_target(const std::shared_ptr<const device_weights>& target) override {
    drafts_->use_target(target);
  }
  void see(std::span<const seen_rows> seen, std::span<const float> states) override {
    drafts_->see(seen, states);
  }
  void parked(response_id response, std::span<const token_id> tokens) override {
    drafts_->parked(response, tokens);
  }
  void gone(response_id response, std::span<const token_id> tokens) override {
    drafts_->gone(response, tokens);
  }
  void draft(std::span<const draft_seat> seats, const step_load& load) override;
  void learn(std::span<const draft_outcome> outcomes, const step_load& load,
             double seconds) override;

  const draft_link::counters& counts() const noexcept { return link_->counts(); }

private:
  struct here {
    draft_group name;
    std::uint32_t position = 0; ///< Tokens it has.
  };

  void hear();

  std::shared_ptr<speculator> drafts_;
  std::unique_ptr<draft_link> link_;
  stale_function stale_;
  std::unordered_map<response_id, here> running_;
  std::vector<heard_tokens> heard_;
  std::deque<group_id> over_; ///< Some, the latest last.
};

} // namespace rollcast
