#pragma once

#include "engine/draft/draft_budget.hpp"
#include "engine/draft/draft_guard.hpp"
#include "engine/draft/drafter.hpp"
#include "engine/draft/model_drafter.hpp"
#include "engine/draft/rehearsal.hpp"
#include "engine/draft/suffix_index.hpp"

#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace rollcast {

/// Whose tokens drafts are made of, and how much is drafted.
enum class speculation : std::uint8_t {
  off,
  self,   ///< The response's own past, as much as fits.
  group,  ///< All that the group has written, as much as fits.
  mtp,    ///< An MTP layer's proposals.
  eagle3, ///< An EAGLE-3 head's proposals.
  auto_,  ///< The group's, or a model's if there is one, as much as pays; often nothing.
};

/// Returns the mode of a name of `--speculate`, nothing for another.
std::optional<speculation> find_speculation(std::string_view name);
std::string_view to_string(speculation how);

/// Steps that a model sees, after it has slept, before it drafts.
constexpr std::uint32_t warm_steps = 16;

/// A probe's drafted token counts so much more when rows are given out: its group waits for it.
constexpr float probe_worth = 1.5f;

struct speculation_options {
  speculation how = speculation::off;
  std::uint32_t tokens_max = 8;         ///< Drafted for one response in one step.
  std::uint32_t tree_width = 1;         ///< Children of one token at most; 1 drafts chains.
  float survival_min = 0.1f;            ///< Chance of being kept below which nothing is drafted.
  std::uint64_t bytes_max = 256u << 20; ///< Of all groups; the longest unused go first.
};

/// Running totals, for metrics.
struct speculation_figures {
  std::uint64_t drafts = 0;  ///< Responses that something was drafted for, over all steps.
  std::uint64_t skipped = 0; ///< Steps for which nothing was looked up, because it had not paid.
  double draft_seconds = 0;
  std::uint64_t groups = 0;
  std::uint64_t bytes = 0;
};

/// Drafts from what the responses of a group have written (`suffix_index`), and learns from what is
/// verified how much of it to draft. Belongs to the engine's thread.
class speculator final : public drafter {
public:
  /// @param costs  Needed by `auto_` only.
  explicit speculator(const speculation_options& options, std::optional<step_costs> costs = {});

  /// Has `auto_` draft with a model too, where that pays. @param costs  Of its passes.
  void consider(std::shared_ptr<model_drafter> model, step_costs costs);

  /// Tells what a response that will run here has so far. `probe`: its group waits for it, so its
  /// tokens are worth more.
  void follow(response_id response, group_id group, bool probe, std::span<const token_id> tokens);
  /// Tells what a sibling wrote elsewhere. What does not continue where its stream ends is not
  /// taken. @returns where it ends.
  std::uint32_t hear(group_id group, response_id sibling, std::uint32_t position,
                     std::span<const token_id> tokens);

  /// Forgets a group, because all its responses are over.
  void forget(group_id group);

  /// Forgets every group, because numbers will mean others: the scheduler was started again.
  void forget_all();

  state_wish wants_states() const override;
  bool sees() const override { return model_ && awake_; }
  void use_target(const std::shared_ptr<const device_weights>& target) override;
  void see(std::span<const seen_rows> seen, std::span<const float> states) override;
  void parked(response_id response, std::span<const token_id> tokens) override;
  void gone(response_id response, std::span<const token_id> tokens) override;
  void draft(std::span<const draft_seat> seats, const step_load& load) override;
  void learn(std::span<const draft_outcome> outcomes, const step_load& load,
             double seconds) override;

  const speculation_figures& figures() const noexcept { return figures_; }

private:
  struct group_record {
    suffix_index index;
    acceptance seen;
    std::map<response_id, std::uint32_t> streams;
    std::uint64_t bytes = 0; ///< As last counted.
    std::list<group_id>::iterator use;
    group_id of; ///< The group itself, also where each response is a group of its own.
    /// By stream: what it has and the index has not, until something is looked up. What a response
    /// writes while it has a seat is not even here: the seat has it.
    std::vector<std::vector<token_id>> unwritten;
    std::size_t unwritten_tokens = 0;
  };
  struct followed {
    group_id group;
    std::uint32_t stream = 0;
    bool probe = false;
    std::vector<draft_token> draft; ///< What was looked up for the step being built.
    std::vector<std::int32_t> at;   ///< By its node: where in the seat's draft it went.
  };
  /// A drafted token in the order of what it is worth.
  struct candidate {
    float worth = 0; ///< Chance of being kept, more for a probe.
    float survival = 0;
    std::uint32_t seat = 0;
    std::uint32_t node = 0;
  };

  static double seconds_since(std::chrono::steady_clock::time_point begin);
  group_record& touch(group_id group);
  std::uint32_t open(group_record& g, response_id response);
  std::size_t known(const group_record& g, std::uint32_t stream) const;
  void write_later(group_record& g, std::uint32_t stream, std::span<const token_id> tokens);
  void index_all(group_record& g);
  void count_bytes(group_record& g);
  void catch_up(std::span<const draft_seat> seats);
  void expire();
  void erase(std::unordered_map<group_id, group_record>::iterator it);
  void look_up(followed& f, const draft_seat& seat, std::uint32_t number);
  void look_up_all(std::span<const draft_seat> seats);
  void plan_group(std::span<const draft_seat> seats, const step_load& load);
  template <class DraftOf>
  void place(DraftOf&& draft_of);
  static void append(followed& f, std::uint32_t number, std::vector<draft_token>& draft);
  void rehearse(std::span<const draft_seat> seats, const step_load& load, double looking_s);
  void commit_group(std::span<const draft_seat> seats);
  std::uint32_t plan_model(std::size_t seats, const step_load& load) const;
  bool wake_model(bool due);
  bool draft_with_model(std::span<const draft_seat> seats, const step_load& load);
  std::size_t budget(const step_load& load, std::size_t seats);
  float chance(const group_record& g, std::size_t place, float said) const;
  void learn(const draft_outcome& outcome, acceptance& of_group);
  void learn_rehearsed(std::span<const draft_outcome> outcomes, double seconds);
  void judge(const step_load& load, std::size_t drafted, std::size_t tokens, std::size_t seats,
             double seconds);

  speculation_options options_;
  std::optional<step_costs> costs_;
  draft_guard guard_;
  rehearsal rehearsal_;         ///< Of the groups' drafts that get no rows.
  double rehearsal_debt_s_ = 0; ///< Of the last one, until its time is a small share.
  double rehearsal_vain_s_ = 0; ///< For look-ups, since the last one with drafts, that chose none.
  bool held_ = false;           ///< In the step being built groups' drafts are shut out.
  acceptance acceptance_;
  std::unordered_map<group_id, group_record> groups_;
  std::list<group_id> uses_; ///< Longest unused first.
  std::unordered_map<response_id, followed> followed_;
  std::vector<candidate> candidates_;
  std::vector<float> survivals_;
  std::vector<followed*> sitting_; ///< By seat, while its step is built.
  std::vector<float> chances_;     ///< By node of the draft looked up last: of being kept.
  std::vector<std::uint32_t> depths_;
  /// Who drafts in the step being built.
  enum class source : std::uint8_t { none, group, model };
  source source_ = source::none;
  std::size_t chosen_ = 0; ///< Of `candidates_`.
  double promised_ = 0;    ///< Tokens that these are expected to bring.
  std::shared_ptr<model_drafter> model_;
  std::optional<step_costs> model_costs_;
  draft_guard model_guard_;
  bool awake_ = true;         ///< The model sees what the target computes.
  std::uint32_t warm_ = 0;    ///< Steps for which it does not draft yet, because it saw too little.
  std::uint32_t not_due_ = 0; ///< Steps since it last was to draft, or soon.
  std::uint32_t pause_ = 0;   ///< Steps to leave out after a look-up that did not pay.
  std::uint32_t pause_left_ = 0;
  bool looked_ = true;    ///< In the step before this one something was looked up.
  double overdue_s_ = 0;  ///< Of the step being built: for tokens that were told of before it.
  double drafting_s_ = 0; ///< Of the step being built, without that.
  speculation_figures figures_;
};

} // namespace rollcast
