#pragma once

#include "cluster/policy/scheduler_policy.hpp"
#include "cluster/sim/cost_model.hpp"
#include "cluster/sim/drafting.hpp"
#include "cluster/sim/workload.hpp"

#include <cstdint>
#include <vector>

namespace rollcast::sim {

struct sim_options {
  policy::group_rules rules = {};    ///< Mode, chunk length, probes.
  policy::policy_limits limits = {}; ///< Its `rules` and prices are overwritten by ours.
  /// context: every group is told the true length of its longest member, and no more. It is the
  /// bound of what an estimate for each group could reach.
  bool oracle_groups = false;
  speculation speculate = speculation::off;
  std::uint64_t seed = 1; ///< Of the luck of drafts; the batch has its own.
  bool timeline = false;  ///< Record `sim_result::timeline`.
};

/// How many responses a worker runs from this moment on.
struct timeline_point {
  double at_s = 0;
  std::uint32_t running = 0;
};

/// When the first step of a response began and when it ended.
struct response_times {
  double started_s = 0;
  double ended_s = 0;
};

struct sim_result {
  double makespan_s = 0;
  double tail_s = 0;        ///< Time with at most a tenth of the responses unfinished.
  double idle_fraction = 0; ///< Of worker time, nothing running; transfers alone count as idle.
  std::uint64_t generated_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t migrations = 0;
  std::uint64_t migrated_bytes = 0;
  std::uint64_t recomputed_tokens = 0; ///< After preemptions, evictions and cheap moves.
  std::uint64_t evictions = 0;         ///< Parked KV that had to leave its blocks.
  std::uint64_t spills = 0;            ///< Of those: kept in spill space.
  std::uint64_t chunks = 0;
  std::uint64_t draft_tokens = 0;
  std::uint64_t accepted_tokens = 0;
  /// Tokens of a step of one response in which something was drafted for it; 0: never.
  double mean_acceptance_length = 0;
  /// Mean of |what the policy expected of a response when it first placed it - its length|.
  double estimate_error_tokens = 0;
  /// Share of responses of which the policy had an estimate then (else it took the limit).
  double estimated_share = 0;
  double busy_kv_fraction = 0;           ///< Largest share of a worker's KV blocks ever held.
  std::vector<response_times> responses; ///< In the order of the workload.
  std::vector<std::vector<timeline_point>> timeline; ///< By worker.
};

/// Runs one batch through the real policy against the cost model, message by message: what a
/// scheduler, its workers and their KV transfers would do on a network that only delays.
///
/// Deterministic: equal arguments give equal results on one platform. Fails with `bad_config` if
/// the model cannot be simulated or a response does not fit the largest worker.
result<sim_result> simulate(const workload& batch, const cost_model& model,
                            const sim_options& options);

} // namespace rollcast::sim
