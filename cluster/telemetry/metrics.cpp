#include "cluster/telemetry/metrics.hpp"

#include "engine/base/check.hpp"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <deque>
#include <fstream>
#include <mutex>
#include <set>
#include <utility>

namespace rollcast {

// -- handles ------------------------------------------------------------------

struct metric_counter::state {
  prometheus::Counter* exported;
  // Exact where a double is not, and what `raise_to` compares with.
  std::atomic<std::uint64_t> total{0};
};

struct metric_gauge::state {
  prometheus::Gauge* exported;
};

struct metric_histogram::state {
  prometheus::Histogram* exported;
};

void metric_counter::add(std::uint64_t n) const noexcept {
  state_->total.fetch_add(n, std::memory_order_relaxed);
  state_->exported->Increment(static_cast<double>(n));
}

void metric_counter::raise_to(std::uint64_t total) const noexcept {
  auto seen = state_->total.load(std::memory_order_relaxed);
  while (seen < total)
    if (state_->total.compare_exchange_weak(seen, total, std::memory_order_relaxed)) {
      // Whoever wins the exchange exports exactly its own step, so the steps add up to the total.
      state_->exported->Increment(static_cast<double>(total - seen));
      return;
    }
}

std::uint64_t metric_counter::value() const noexcept {
  return state_->total.load(std::memory_order_relaxed);
}

void metric_gauge::set(double value) const noexcept {
  state_->exported->Set(value);
}

void metric_gauge::add(double change) const noexcept {
  state_->exported->Increment(change);
}

double metric_gauge::value() const noexcept {
  return state_->exported->Value();
}

void metric_histogram::observe(double value) const noexcept {
  if (!std::isnan(value))
    state_->exported->Observe(value);
}

// -- registry -----------------------------------------------------------------

struct metrics_registry::state {
  prometheus::Registry series;
  // Deques: a handle points at its element, which must not move when another is made.
  std::deque<metric_counter::state> counters;
  std::deque<metric_gauge::state> gauges;
  std::deque<metric_histogram::state> histograms;
  std::set<std::pair<std::string, std::string>> made; // (name, label value)

  std::mutex info_mutex;
  prometheus::Family<prometheus::Gauge>* info_family = nullptr;
  prometheus::Gauge* info = nullptr;
  prometheus::Gauge* resident = nullptr;
};

namespace {

/// Memory of this process that is in RAM, or 0 where /proc is not to be read.
double resident_bytes() {
  std::ifstream in{"/proc/self/statm"};
  std::uint64_t mapped_pages = 0, resident_pages = 0;
  in >> mapped_pages >> resident_pages;
  return in ? static_cast<double>(resident_pages) * static_cast<double>(::sysconf(_SC_PAGESIZE))
            : 0;
}

prometheus::Labels labels_of(const std::string& label, const std::string& value) {
  return label.empty() ? prometheus::Labels{} : prometheus::Labels{{label, value}};
}

} // namespace

metrics_registry::metrics_registry() : state_(std::make_unique<state>()) {
  state_->info_family = &prometheus::BuildGauge()
                           .Name("rollcast_build_info")
                           .Help("Always 1; the labels say what runs here")
                           .Register(state_->series);
  state_->resident = &prometheus::BuildGauge()
                        .Name("rollcast_resident_bytes")
                        .Help("Memory of the process that is in RAM")
                        .Register(state_->series)
                        .Add({});
}

metrics_registry::~metrics_registry() = default;

std::string metrics_registry::text() const {
  // Not while `describe` is between removing one series and adding the next.
  std::lock_guard lock{state_->info_mutex};
  state_->resident->Set(resident_bytes());
  return prometheus::TextSerializer{}.Serialize(state_->series.Collect());
}

metric_counter metrics_registry::counter(const std::string& name, const std::string& help,
                                         const std::string& label, const std::string& value) {
  ROLLCAST_CHECK(name.starts_with("rollcast_"));
  ROLLCAST_CHECK(name.ends_with("_total"));
  ROLLCAST_CHECK(state_->made.emplace(name, value).second);
  auto& family = prometheus::BuildCounter().Name(name).Help(help).Register(state_->series);
  auto& made = state_->counters.emplace_back();
  made.exported = &family.Add(labels_of(label, value));
  return metric_counter{&made};
}

metric_gauge metrics_registry::gauge(const std::string& name, const std::string& help,
                                     const std::string& label, const std::string& value) {
  ROLLCAST_CHECK(name.starts_with("rollcast_"));
  ROLLCAST_CHECK(state_->made.emplace(name, value).second);
  auto& family = prometheus::BuildGauge().Name(name).Help(help).Register(state_->series);
  return metric_gauge{&state_->gauges.emplace_back(&family.Add(labels_of(label, value)))};
}

metric_histogram metrics_registry::histogram(const std::string& name, const std::string& help,
                                             const std::vector<double>& bounds,
                                             const std::string& label, const std::string& value) {
  ROLLCAST_CHECK(name.starts_with("rollcast_"));
  ROLLCAST_CHECK(state_->made.emplace(name, value).second);
  auto& family = prometheus::BuildHistogram().Name(name).Help(help).Register(state_->series);
  return metric_histogram{
    &state_->histograms.emplace_back(&family.Add(labels_of(label, value), bounds))};
}

void metrics_registry::describe(const std::string& version, const std::string& numerics_profile) {
  std::lock_guard lock{state_->info_mutex};
  if (state_->info != nullptr)
    state_->info_family->Remove(state_->info);
  state_->info =
    &state_->info_family->Add({{"version", version}, {"numerics_profile", numerics_profile}});
  state_->info->Set(1);
}

// -- the roles ----------------------------------------------------------------

namespace {

// From half a millisecond (a tiny model) to several seconds (a long prefill), about 2.2x apart.
const std::vector<double> step_bounds{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                      0.1,    0.25,  0.5,    1,     2.5,  5};
const std::vector<double> acceptance_bounds{1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 7, 8, 9};
const std::vector<double> draft_bounds{1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5,
                                       1e-4, 2.5e-4, 5e-4, 1e-3, 1e-2};
const std::vector<double> budget_bounds{0, 1, 2, 4, 8, 16, 32, 64, 128, 256};
const std::vector<double> row_bounds{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
// From a step's length to a server that was away.
const std::vector<double> staleness_bounds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                           0.1,   0.25,   0.5,   1,    2.5,   10};
// A decision must be far below a step: fine below a millisecond.
const std::vector<double> decision_bounds{1e-6,   2.5e-6, 5e-6, 1e-5,   2.5e-5, 5e-5, 1e-4,
                                          2.5e-4, 5e-4,   1e-3, 2.5e-3, 1e-2,   0.1};
// From a demo's seconds to the hour of a reasoning model's longest answers.
const std::vector<double> batch_bounds{0.1, 0.25, 0.5, 1,   2.5,  5,    10,  25,
                                       50,  100,  250, 500, 1000, 2500, 5000};
// From the exchange of a pointer to the longest batch that had to end first.
const std::vector<double> update_bounds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                        0.5,   1,      2.5,   10,   60,    600,  3600};
const std::vector<double> token_bounds{0,    16,   32,   64,   128,   256,   512,
                                       1024, 2048, 4096, 8192, 16384, 32768, 65536};

// From a disk with a battery to one that is nearly dead.
const std::vector<double> write_bounds{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                       0.025,  0.05,    0.1,    0.25,  0.5,    1,     5};

metric_histogram update_phase(metrics_registry& registry, const std::string& phase) {
  return registry.histogram("rollcast_weight_update_seconds", "Time of a weight update's phases",
                            update_bounds, "phase", phase);
}

} // namespace

process_metrics::process_metrics(const std::string& version, const std::string& numerics_profile)
  : weight_epoch(registry.gauge("rollcast_weight_epoch", "Weight version served")),
    requests_running(registry.gauge("rollcast_requests_running", "Responses being generated")),
    requests_waiting(
      registry.gauge("rollcast_requests_waiting", "Responses accepted and not being generated")),
    prompt_tokens(registry.counter("rollcast_prompt_tokens_total", "Prompt tokens taken in")),
    generated_tokens(registry.counter("rollcast_generated_tokens_total", "Tokens generated")),
    recomputed_tokens(registry.counter("rollcast_recomputed_tokens_total",
                                       "Tokens prefilled again because their KV was gone")),
    preemptions(registry.counter("rollcast_preemptions_total",
                                 "Responses thrown out of a running batch for want of KV blocks")),
    frames_rejected{
      registry.counter("rollcast_frames_rejected_total", "Frames from outside that were refused",
                       "reason", "malformed"),
      registry.counter("rollcast_frames_rejected_total", "Frames from outside that were refused",
                       "reason", "too_large"),
      registry.counter("rollcast_frames_rejected_total", "Frames from outside that were refused",
                       "reason", "unimplemented"),
      registry.counter("rollcast_frames_rejected_total", "Frames from outside that were refused",
                       "reason", "over_limit")} {
  registry.describe(version, numerics_profile);
}

scheduler_metrics::scheduler_metrics(const std::string& version,
                                     const std::string& numerics_profile)
  : process_metrics(version, numerics_profile),
    responses{
      registry.counter("rollcast_responses_total", "Finished responses", "finish_reason", "stop"),
      registry.counter("rollcast_responses_total", "Finished responses", "finish_reason", "length"),
      registry.counter("rollcast_responses_total", "Finished responses", "finish_reason",
                       "cancelled")},
    workers{registry.gauge("rollcast_workers", "Registered workers", "state", "ready"),
            registry.gauge("rollcast_workers", "Registered workers", "state", "draining"),
            registry.gauge("rollcast_workers", "Registered workers", "state", "stale")},
    worker_lost(registry.counter("rollcast_worker_lost_total", "Workers declared lost")),
    migrations{registry.counter("rollcast_migrations_total",
                                "Responses whose KV moved to another worker", "path", "zmq"),
               registry.counter("rollcast_migrations_total",
                                "Responses whose KV moved to another worker", "path", "nccl")},
    migrated_bytes(
      registry.counter("rollcast_migrated_bytes_total", "KV bytes moved between workers")),
    collective{
      registry.gauge("rollcast_collective_members", "Workers in the collective group that is open"),
      registry.counter("rollcast_collective_epochs_total",
                       "Collective groups, by what became of "
                       "them",
                       "result", "opened"),
      registry.counter("rollcast_collective_epochs_total",
                       "Collective groups, by what became of "
                       "them",
                       "result", "failed"),
      registry.counter("rollcast_collective_rounds_total", "Rounds of transfers that are over"),
      registry.counter("rollcast_collective_bytes_total", "Bytes moved by collective groups",
                       "what", "kv"),
      registry.counter("rollcast_collective_bytes_total", "Bytes moved by collective groups",
                       "what", "weights")},
    scheduler_decision_seconds(registry.histogram("rollcast_scheduler_decision_seconds",
                                                  "Time of one call of the policy's plan",
                                                  decision_bounds)),
    batch_makespan_seconds(registry.histogram("rollcast_batch_makespan_seconds",
                                              "From a batch's acceptance to its last response",
                                              batch_bounds)),
    batch_tail_seconds(registry.histogram(
      "rollcast_batch_tail_seconds", "Time with at most 10 % of a batch unfinished", batch_bounds)),
    length_estimate_error_tokens(registry.histogram(
      "rollcast_length_estimate_error_tokens",
      "Absolute difference of a finished response's length and its estimate", token_bounds)),
    weight_updates{
      registry.counter("rollcast_weight_updates_total", "Weight updates", "result", "committed"),
      registry.counter("rollcast_weight_updates_total", "Weight updates", "result", "aborted"),
      registry.counter("rollcast_weight_updates_total", "Weight updates", "result", "rolled_back")},
    weight_update_seconds{update_phase(registry, "receiving"),
                          update_phase(registry, "distributing"), update_phase(registry, "waiting"),
                          update_phase(registry, "flipping")},
    weight_pause_seconds(registry.histogram("rollcast_weight_pause_seconds",
                                            "Time that nothing was placed for a change of weights",
                                            update_bounds)),
    scored_tokens(registry.counter("rollcast_scored_tokens_total",
                                   "Tokens whose log-probability a controller asked for")),
    journal{registry.histogram("rollcast_journal_write_seconds",
                               "Time of one commit of the journal", write_bounds),
            registry.gauge("rollcast_journal_bytes", "Size of the journal, free pages left out"),
            registry.gauge("rollcast_journal_pending_bytes", "Records that are not on disk yet"),
            registry.gauge("rollcast_journal_full",
                           "1 while no new batch is taken on because of the journal")},
    controller_connections(registry.gauge("rollcast_controller_connections",
                                          "Open connections to the controllers' port")),
    connections_refused{
      registry.counter("rollcast_connections_refused_total",
                       "Connections to the controllers' port that were ended at the door", "reason",
                       "handshake"),
      registry.counter("rollcast_connections_refused_total",
                       "Connections to the controllers' port that were ended at the door", "reason",
                       "too_many")} {}

worker_metrics::worker_metrics(const std::string& version, const std::string& numerics_profile)
  : process_metrics(version, numerics_profile),
    kv_blocks{registry.gauge("rollcast_kv_blocks", "KV blocks", "state", "free"),
              registry.gauge("rollcast_kv_blocks", "KV blocks", "state", "running"),
              registry.gauge("rollcast_kv_blocks", "KV blocks", "state", "parked")},
    kv_spilled_bytes{registry.gauge("rollcast_kv_spilled_bytes",
                                    "KV kept outside the engine's blocks", "tier", "memory"),
                     registry.gauge("rollcast_kv_spilled_bytes",
                                    "KV kept outside the engine's blocks", "tier", "disk")},
    kv_spills(registry.counter("rollcast_kv_spills_total",
                               "Responses whose KV moved out of the engine's blocks")),
    kv_restores(registry.counter("rollcast_kv_restores_total",
                                 "Responses whose spilled KV moved back into blocks")),
    kv_spill_failures(registry.counter("rollcast_kv_spill_failures_total",
                                       "Responses whose KV was not spilled, or not brought back")),
    collective_fallbacks{
      registry.counter("rollcast_collective_fallbacks_total",
                       "Transfers that the collective group did not make, so that they went by "
                       "ZeroMQ",
                       "what", "kv"),
      registry.counter("rollcast_collective_fallbacks_total",
                       "Transfers that the collective group did not make, so that they went by "
                       "ZeroMQ",
                       "what", "weights")},
    recompute_seconds_per_token(registry.gauge("rollcast_recompute_seconds_per_token",
                                               "Measured price of computing KV again; 0: unknown")),
    kv_move_seconds_per_byte(registry.gauge("rollcast_kv_move_seconds_per_byte",
                                            "Measured price of pulling KV; 0: unknown")),
    kv_restore_seconds_per_byte(
      registry.gauge("rollcast_kv_restore_seconds_per_byte",
                     "Measured price of spilling KV and bringing it back; 0: unknown")),
    draft_tokens{registry.counter("rollcast_draft_tokens_total",
                                  "Drafted tokens that were verified", "drafter", "suffix"),
                 registry.counter("rollcast_draft_tokens_total",
                                  "Drafted tokens that were verified", "drafter", "model")},
    accepted_tokens{registry.counter("rollcast_accepted_tokens_total",
                                     "Drafted tokens that were right", "drafter", "suffix"),
                    registry.counter("rollcast_accepted_tokens_total",
                                     "Drafted tokens that were right", "drafter", "model")},
    acceptance_length(registry.histogram(
      "rollcast_acceptance_length",
      "Mean tokens of the responses of a step that had drafts, bonus token included",
      acceptance_bounds)),
    draft_budget_tokens(registry.histogram("rollcast_draft_budget_tokens",
                                           "Drafted tokens of one engine step", budget_bounds)),
    draft_seconds(registry.histogram("rollcast_draft_seconds",
                                     "Time that one step's drafts took to look up", draft_bounds)),
    draft_index_bytes(registry.gauge("rollcast_draft_index_bytes",
                                     "Memory of what groups have written, kept to draft from")),
    draft_model_passes(
      registry.counter("rollcast_draft_model_passes_total", "Forward passes of the draft model")),
    draft_context_restarts(registry.counter(
      "rollcast_draft_context_restarts_total",
      "Times that the draft model forgot what a response had, and went on from there")),
    draft_contexts_starved(registry.counter("rollcast_draft_contexts_starved_total",
                                            "Times that it had no KV blocks for a response")),
    sibling_tokens(registry.counter("rollcast_sibling_tokens_total",
                                    "Tokens heard of siblings on other workers")),
    draft_gaps_repaired(
      registry.counter("rollcast_draft_gaps_repaired_total", "Streams found short and completed")),
    draft_link_dropped(registry.counter("rollcast_draft_link_dropped_total",
                                        "Notes and frames of drafts that there was no room for")),
    draft_link_rejected(registry.counter("rollcast_draft_link_rejected_total",
                                         "Frames of the draft server that were refused")),
    draft_staleness_seconds(registry.histogram("rollcast_draft_staleness_seconds",
                                               "Age of siblings' tokens when first usable",
                                               staleness_bounds)),
    step_seconds(
      registry.histogram("rollcast_step_seconds", "Time of one engine step", step_bounds)),
    batch_rows(registry.histogram("rollcast_batch_rows", "Activation rows of one engine step",
                                  row_bounds)) {}

draft_server_metrics::draft_server_metrics(const std::string& version)
  : groups(registry.gauge("rollcast_draft_groups", "Groups kept to be told about")),
    bytes(registry.gauge("rollcast_draft_bytes", "Memory of what they have written")),
    followers(registry.gauge("rollcast_draft_followers", "Pairs of a group and a worker")),
    relayed_tokens(registry.counter("rollcast_draft_relayed_tokens_total",
                                    "Tokens sent on, once for each worker")),
    gaps_repaired(
      registry.counter("rollcast_draft_gaps_repaired_total", "Streams found short and completed")),
    frames_dropped{registry.counter("rollcast_draft_frames_dropped_total",
                                    "Frames not taken or not sent", "reason", "malformed"),
                   registry.counter("rollcast_draft_frames_dropped_total",
                                    "Frames not taken or not sent", "reason", "full"),
                   registry.counter("rollcast_draft_frames_dropped_total",
                                    "Frames not taken or not sent", "reason", "conflict")} {
  registry.describe(version, "");
}

} // namespace rollcast
