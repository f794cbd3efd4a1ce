#pragma once

#include "cluster/sim/acceptance_curve.hpp"
#include "cluster/sim/cost_model.hpp"
#include "cluster/sim/workload.hpp"
#include "engine/draft/draft_budget.hpp"
#include "engine/draft/speculator.hpp"

#include <cstdint>
#include <limits>
#include <vector>

namespace rollcast::sim {

/// The chance of being kept from which on a drafted token gets a row; above 1: none does. A
/// probe's chance counts half as much again, as in engine/draft/speculator.
struct draft_bar {
  double worth = std::numeric_limits<double>::infinity();
};

/// Speculative decoding of one batch: what the cluster knows of each group, what a draft of it is
/// worth, and how much to draft. One for all workers.
///
/// What is known of a response is what it had at its last chunk edge. The siblings that a response
/// can draw on are added up from shares: a complete one counts 1, and less once it was outrun, its
/// tokens over those of the response; an unfinished one counts that share of its text which the
/// response has not reached yet, so a group in lock step counts nothing.
class drafting {
public:
  /// @param batch  Outlives this.
  drafting(const workload& batch, speculation how, std::uint64_t seed);

  bool on() const noexcept { return how_ != speculation::off; }
  bool by_budget() const noexcept { return how_ == speculation::auto_; }
  /// A response reached a chunk edge or its end. `context`: its prompt and tokens done.
  void tell(std::uint32_t response, std::uint64_t context);

  /// Changes whenever `level` of a member of the response's group may have.
  std::uint32_t version(std::uint32_t response) const {
    return how_ == speculation::self ? 1 : groups_[group_of_[response]].version;
  }
  /// The response's place on the acceptance curve.
  std::uint32_t level(std::uint32_t response) const;
  bool probe(std::uint32_t response) const { return probe_[response]; }
  /// Tokens drafted for it in a step under such a bar.
  std::uint32_t drafted(std::uint32_t level, bool probe, draft_bar bar) const;
  /// A response's own luck with what it drafts from `position` on: a standard normal of (seed,
  /// response, position), whatever else runs.
  double luck(std::uint32_t response, std::uint64_t position) const;
  /// Tokens that each of its steps makes, on average over `tokens` tokens: the mean and the
  /// variance of the stretch are those of steps drawn one by one.
  double pace(double luck, std::uint32_t tokens, std::uint32_t level, std::uint32_t drafted) const;

  /// Responses of a batch by place on the curve and by whether they are probes.
  using census = std::vector<std::array<std::uint32_t, 2>>;
  static census empty_census() { return census(acceptance_curve::levels + 1); }
  /// `auto`: what the engine's own `choose_budget` gives, as a bar; else the bar that lets all
  /// pass.
  /// @param seconds  Of a step without drafts.
  draft_bar choose(const census& seats, double seconds, const cost_model& model) const;

private:
  struct group_record {
    std::vector<std::uint32_t> members;
    std::uint32_t version = 1;
  };
  /// A token of a draft by its worth and its chance.
  struct rung {
    double worth = 0;
    double survival = 0;
    std::uint32_t level = 0;
    bool probe = false;
  };

  const workload& batch_;
  speculation how_;
  std::uint64_t seed_;
  acceptance_curve curve_;
  std::vector<rung> by_survival_; ///< Highest first.
  std::vector<rung> by_worth_;    ///< Highest first.
  std::vector<group_record> groups_;
  std::vector<std::uint32_t> group_of_;
  std::vector<std::uint64_t> done_;
  std::vector<bool> probe_;
};

} // namespace rollcast::sim
