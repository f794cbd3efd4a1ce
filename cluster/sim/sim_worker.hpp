#pragma once

#include "cluster/sim/cost_model.hpp"
#include "cluster/sim/drafting.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

namespace rollcast::sim {

/// A chunk as a worker gets it.
struct chunk_job {
  std::uint32_t response = 0; ///< Index in the workload.
  std::uint32_t attempt = 0;
  std::uint64_t context = 0;         ///< Prompt and tokens done.
  std::uint32_t tokens_now = 0;      ///< Tokens that it will generate. At least 1.
  std::uint64_t prefill = 0;         ///< Tokens to compute before the first; 0: the KV is here.
  std::uint32_t reserved_blocks = 0; ///< 0: takes blocks as it grows, and may be preempted.
};

/// A chunk that ended.
struct ended_chunk {
  std::uint32_t response = 0;
  std::uint32_t attempt = 0;
  double started_s = 0; ///< When its first step began.
};

/// Totals of one worker.
struct worker_totals {
  double busy_s = 0;
  std::uint64_t generated_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t recomputed_tokens = 0; ///< After preemptions.
  std::uint64_t steps = 0;
  std::uint64_t draft_tokens = 0;
  std::uint64_t accepted_tokens = 0;
  std::uint64_t verifications = 0; ///< Steps of one response in which something was drafted for it.
};

/// One worker under the cost model: continuous batching in steps, as engine/step does it.
///
/// Between two changes of membership every step differs from the one before by as many KV tokens as
/// there are rows, so the time of n steps is a quadratic in n and a span of steps is taken at once.
/// With drafts a row makes `drafting::pace` tokens a step, fractions carried, instead of one; how
/// much is drafted is decided between spans.
/// What arrives meanwhile joins at the next step, as in an engine. Simplified against engine/step:
/// a prompt is computed in one step, together with the decoding rows, not in slices.
class sim_worker {
public:
  /// @param drafts  Of the whole batch, outlives the worker, is told of chunks that end; null or
  /// off: one token a step.
  explicit sim_worker(const cost_model& model, drafting* drafts = nullptr)
    : model_(model), drafts_(drafts != nullptr && drafts->on() ? drafts : nullptr) {}

  static constexpr double never = std::numeric_limits<double>::infinity();

  /// A chunk arrives at `now`: it starts at the next step boundary if there is room, in order of
  /// arrival. Moves `wakes_at` forward.
  void arrive(double now, const chunk_job& job);
  /// When `wake` must be called: a step boundary at which something changes. `never` while idle.
  double wakes_at() const noexcept { return wakes_at_; }
  /// Takes the steps up to `wakes_at`, adds what ended, and begins the next span.
  void wake(std::vector<ended_chunk>& ended);

  /// KV held between chunks; it takes room from what runs, and the policy promised that it fits.
  void park(std::uint32_t blocks) { parked_blocks_ += blocks; }
  void unpark(std::uint32_t blocks);

  std::size_t running() const noexcept { return running_.size(); }
  std::size_t waiting() const noexcept { return waiting_.size(); }
  /// Blocks of running and parked KV at the last boundary.
  std::uint64_t blocks_held() const { return blocks_at(1); }
  const worker_totals& totals() const noexcept { return totals_; }

private:
  /// Tokens in 2^-20, so that what is carried from span to span adds up exactly.
  using parts = std::uint64_t;
  static constexpr parts one_token = 1u << 20;

  struct sequence {
    chunk_job job;
    std::uint64_t arrival = 0;
    double started_s = -1;    ///< Below 0: not yet.
    std::uint64_t joined = 0; ///< `step_` when it joined.
    parts made = 0;           ///< Of its chunk, since it joined.
    parts pace = one_token;   ///< A step.
    double luck = 0;
    std::uint32_t drafted = 0; ///< A step.
    std::uint32_t level = 0;
    std::uint32_t level_version = 0; ///< Of its group when `level` was looked up; 0: never.

    std::uint64_t context() const { return job.context + made / one_token; }
    parts goal() const { return job.tokens_now * one_token; }
    std::uint64_t steps_left() const { return (goal() - made + pace - 1) / pace; }
  };

  double span_seconds(std::uint64_t steps) const;
  std::uint64_t steps_until(double seconds) const;
  std::uint64_t blocks_at(std::uint64_t nth_step) const;
  std::uint64_t steps_that_fit(std::uint64_t most) const;
  void take_steps(std::uint64_t steps, std::vector<ended_chunk>& ended);
  void admit();
  void preempt_last();
  void begin_span();
  void draft();
  bool bar_is_stale(double seconds) const;

  cost_model model_;
  drafting* drafts_;
  std::vector<sequence> running_; ///< By arrival.
  std::deque<sequence> waiting_;  ///< By arrival.
  std::uint64_t parked_blocks_ = 0;
  std::uint64_t arrivals_ = 0;
  std::uint64_t step_ = 0; ///< Steps taken so far.

  // The span of steps that runs.
  double span_begin_ = 0;
  std::uint64_t span_steps_ = 0;
  parts span_kv_ = 0;              ///< Cached tokens read by its first step.
  parts span_pace_ = 0;            ///< Tokens that each of its steps makes.
  std::uint64_t span_drafts_ = 0;  ///< Tokens that each of its steps verifies.
  std::uint64_t span_prefill_ = 0; ///< New tokens computed in its first step.
  double wakes_at_ = never;

  // The last decision how much to draft, and what it was made for.
  draft_bar bar_;
  std::size_t bar_rows_ = 0;
  double bar_seconds_ = 0;
  std::uint32_t bar_spans_ = 0; ///< Since then.
  worker_totals totals_;
};

} // namespace rollcast::sim
