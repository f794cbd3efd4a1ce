#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace rollcast {

/// A count that only grows. A handle: small, copyable, valid as long as the metrics it came from.
/// Every member may be called from any thread and takes no lock.
class metric_counter {
public:
  /// Counts `n` more.
  void add(std::uint64_t n = 1) const noexcept;

  /// Raises the count to `total`, for counts that arrive as cumulative snapshots. A smaller `total`
  /// (a late or doubled snapshot) changes nothing, so the exported count never goes down.
  void raise_to(std::uint64_t total) const noexcept;

  std::uint64_t value() const noexcept;

private:
  friend class metrics_registry;
  struct state;
  explicit metric_counter(state* s) noexcept : state_(s) {}
  state* state_;
};

/// A level that goes up and down. A handle like `metric_counter`; takes no lock.
class metric_gauge {
public:
  void set(double value) const noexcept;
  void add(double change) const noexcept;
  double value() const noexcept;

private:
  friend class metrics_registry;
  struct state;
  explicit metric_gauge(state* s) noexcept : state_(s) {}
  state* state_;
};

/// A distribution over fixed buckets. A handle like `metric_counter`. `observe` takes one lock that
/// only a scrape contends for: tens of nanoseconds.
class metric_histogram {
public:
  /// Counts one observation. NaN is ignored, because it would poison the sum for ever.
  void observe(double value) const noexcept;

private:
  friend class metrics_registry;
  struct state;
  explicit metric_histogram(state* s) noexcept : state_(s) {}
  state* state_;
};

/// Owns the time series of one process and writes them out, with rollcast_resident_bytes as it is
/// at that moment. Only the adapter metrics.cpp knows prometheus-cpp.
class metrics_registry {
public:
  metrics_registry();
  ~metrics_registry();
  metrics_registry(const metrics_registry&) = delete;
  metrics_registry& operator=(const metrics_registry&) = delete;

  /// All series in the Prometheus text format 0.0.4. Any thread; takes tens of microseconds.
  std::string text() const;

  /// Makes a series; cold, at construction only. `name` has the prefix `rollcast_` and, for a
  /// counter, the suffix `_total`. A `label` of "" makes a series without labels. Asking twice for
  /// one series is a bug and stops the process.
  metric_counter counter(const std::string& name, const std::string& help,
                         const std::string& label = {}, const std::string& value = {});
  metric_gauge gauge(const std::string& name, const std::string& help,
                     const std::string& label = {}, const std::string& value = {});
  /// `bounds` are the upper bounds of the buckets, strictly ascending; +Inf is added.
  metric_histogram histogram(const std::string& name, const std::string& help,
                             const std::vector<double>& bounds, const std::string& label = {},
                             const std::string& value = {});

  /// Sets rollcast_build_info{version, numerics_profile} = 1 and drops the series it had before: a
  /// scheduler knows the profile only when its first worker registers. Any thread; cold.
  void describe(const std::string& version, const std::string& numerics_profile);

private:
  struct state;
  std::unique_ptr<state> state_;
};

/// What scheduler and worker export. `requests_running`, `requests_waiting` and the token counters
/// mean the whole cluster on a scheduler and one engine on a worker; sum over one role, never over
/// both.
struct process_metrics {
  /// @param version of the program; @param numerics_profile may be "" while it is not known.
  process_metrics(const std::string& version, const std::string& numerics_profile);

  metrics_registry registry; ///< First: the handles below point into it.

  metric_gauge weight_epoch;
  metric_gauge requests_running;
  metric_gauge requests_waiting;
  metric_counter prompt_tokens;
  metric_counter generated_tokens;
  metric_counter recomputed_tokens;
  metric_counter preemptions;
  /// Frames from outside that were refused, by reason.
  struct {
    metric_counter malformed;     ///< Not an envelope, wrong version, or a count out of range.
    metric_counter too_large;     ///< Over the size limit.
    metric_counter unimplemented; ///< A known request that this server does not serve.
    metric_counter over_limit;    ///< One of a client that has its share under way already.
  } frames_rejected;
};

/// The series of `rollcast scheduler`. Meanings: dashboards/metrics.md.
struct scheduler_metrics : process_metrics {
  explicit scheduler_metrics(const std::string& version, const std::string& numerics_profile = {});

  /// Finished responses, by finish reason.
  struct {
    metric_counter stop;
    metric_counter length;
    metric_counter cancelled;
  } responses;
  /// Registered workers, by state.
  struct {
    metric_gauge ready;
    metric_gauge draining;
    metric_gauge stale;
  } workers;
  metric_counter worker_lost;
  /// Responses whose KV moved between workers and was confirmed, by transport.
  struct {
    metric_counter zmq;
    metric_counter nccl;
  } migrations;
  metric_counter migrated_bytes;
  /// The group of workers whose devices move bytes directly; all stay 0 where there is none.
  struct {
    metric_gauge members; ///< Of the open epoch.
    metric_counter epochs_opened;
    metric_counter epochs_failed;
    metric_counter rounds;
    metric_counter kv_bytes;
    metric_counter weight_bytes; ///< That roots have sent, however many received them.
  } collective;
  metric_histogram scheduler_decision_seconds;
  metric_histogram batch_makespan_seconds;
  metric_histogram batch_tail_seconds;
  metric_histogram length_estimate_error_tokens;
  /// Weight updates that ended, by how.
  struct {
    metric_counter committed;
    metric_counter aborted;
    metric_counter rolled_back;
  } weight_updates;
  /// What each took, by phase.
  struct {
    metric_histogram receiving;
    metric_histogram distributing;
    metric_histogram waiting;
    metric_histogram flipping;
  } weight_update_seconds;
  metric_histogram weight_pause_seconds;
  metric_counter scored_tokens;
  /// What the scheduler writes down; all stay 0 without a journal.
  struct {
    metric_histogram write_seconds;
    metric_gauge bytes;
    metric_gauge pending_bytes;
    metric_gauge full;
  } journal;
  metric_gauge controller_connections;
  /// Connections to the controllers' port that were ended at the door, by reason.
  struct {
    metric_counter handshake; ///< Of a key that is not in the allow list, or none.
    metric_counter too_many;  ///< Over the bound in all, or of one address.
  } connections_refused;
};

/// The series of `rollcast worker`. Meanings: dashboards/metrics.md.
struct worker_metrics : process_metrics {
  explicit worker_metrics(const std::string& version, const std::string& numerics_profile = {});

  /// KV blocks of the engine, by state; the three add up to the configured number.
  struct {
    metric_gauge free;
    metric_gauge running;
    metric_gauge parked;
  } kv_blocks;
  /// KV kept beside the blocks, by where.
  struct {
    metric_gauge memory;
    metric_gauge disk;
  } kv_spilled_bytes;
  metric_counter kv_spills;
  metric_counter kv_restores;
  metric_counter kv_spill_failures;
  /// What the collective group did not bring, so that it came by ZeroMQ.
  struct {
    metric_counter kv;
    metric_counter weights;
  } collective_fallbacks;
  /// What KV costs, as measured here and told to the scheduler; 0 is unknown.
  metric_gauge recompute_seconds_per_token;
  metric_gauge kv_move_seconds_per_byte;
  metric_gauge kv_restore_seconds_per_byte;
  /// Drafted tokens that were verified, by drafter.
  struct {
    metric_counter suffix;
    metric_counter model;
  } draft_tokens;
  /// Of those: right.
  struct {
    metric_counter suffix;
    metric_counter model;
  } accepted_tokens;
  metric_histogram acceptance_length;
  metric_histogram draft_budget_tokens;
  metric_histogram draft_seconds;
  metric_gauge draft_index_bytes;
  metric_counter draft_model_passes;
  metric_counter draft_context_restarts;
  metric_counter draft_contexts_starved;
  metric_counter sibling_tokens;
  metric_counter draft_gaps_repaired;
  metric_counter draft_link_dropped;
  metric_counter draft_link_rejected;
  metric_histogram draft_staleness_seconds;
  metric_histogram step_seconds;
  metric_histogram batch_rows;
};

/// The series of `rollcast draft-server`. Meanings: dashboards/metrics.md.
struct draft_server_metrics {
  explicit draft_server_metrics(const std::string& version);

  metrics_registry registry; ///< First: the handles below point into it.

  metric_gauge groups;
  metric_gauge bytes;
  metric_gauge followers;
  metric_counter relayed_tokens;
  metric_counter gaps_repaired;
  /// Frames that were not taken or not sent, by reason.
  struct {
    metric_counter malformed; ///< Not a frame, or a count out of range.
    metric_counter full;      ///< No memory left, or a worker's queue is full.
    metric_counter conflict;  ///< Other tokens than were told before.
  } frames_dropped;
};

} // namespace rollcast
