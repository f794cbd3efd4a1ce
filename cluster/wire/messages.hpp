#pragma once

#include "cluster/wire/weight_messages.hpp"
#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

/// What a controller and a scheduler say to each other, without the encoding. proto/rollcast.proto
/// says what each message means and how it is answered; the names here are the same.
namespace rollcast::wire {

// -- requests -------------------------------------------------------------------------------------

/// How tokens are chosen; complete, with nothing left to inherit.
struct sampling_params {
  float temperature = 1; ///< 0 is greedy.
  float top_p = 1;
  std::uint32_t top_k = 0; ///< 0 is off.
  float min_p = 0;
  std::uint32_t max_new_tokens = 0; ///< 0 is refused: the controller must give it.
  std::uint32_t min_new_tokens = 0;
  std::vector<token_id> stop_token_ids;
  bool ignore_eos = false;
  friend bool operator==(const sampling_params&, const sampling_params&) = default;
};

/// One prompt and how many responses it gets.
struct prompt_group {
  std::string id; ///< The controller's own name, given back with each response; may be empty.
  std::vector<token_id> prompt_token_ids;
  std::uint32_t group_size = 1;
  std::optional<std::uint64_t> seed;       ///< In place of the batch's.
  std::optional<sampling_params> sampling; ///< In place of the batch's, inherited fields filled in.
  friend bool operator==(const prompt_group&, const prompt_group&) = default;
};

struct submit_batch {
  std::string batch_key;
  std::vector<prompt_group> groups;
  sampling_params sampling;
  std::uint64_t seed = 0;
  std::optional<std::uint64_t> required_weight_version; ///< None: whatever is served now.
  std::string policy;                                   ///< Empty: the scheduler's own.
  std::optional<std::uint32_t> chunk_tokens;            ///< 0 is unlimited; none: the scheduler's.
  bool force_migration = false;
  bool echo_prompts = false;
  /// Return the ids of the experts that the model's router chose, from this position on.
  std::optional<std::uint32_t> routed_experts_from = {};
  friend bool operator==(const submit_batch&, const submit_batch&) = default;
};

struct cancel_batch {
  std::string batch_key;
  friend bool operator==(const cancel_batch&, const cancel_batch&) = default;
};

struct ack_results {
  std::string batch_key;
  std::uint64_t sequence = 0; ///< Up to and with this one.
  friend bool operator==(const ack_results&, const ack_results&) = default;
};

struct resume_results {
  std::string batch_key;
  std::uint64_t after_sequence = 0;
  friend bool operator==(const resume_results&, const resume_results&) = default;
};

struct get_status {
  friend bool operator==(const get_status&, const get_status&) = default;
};

using request = std::variant<submit_batch, cancel_batch, ack_results, resume_results, get_status,
                             score, begin_weights, weight_bucket, commit_weights, abort_weights,
                             load_weights, rollback_weights, pause, resume>;

struct request_envelope {
  std::uint64_t request_id = 0; ///< Never 0.
  request body;
};

// -- answers --------------------------------------------------------------------------------------

struct batch_accepted {
  std::string batch_key;
  std::uint64_t responses = 0;
  std::uint64_t first_sequence = 1; ///< Of the first result that will be pushed from now on.
  std::string numerics_profile;
  /// That it started at. While it waits to start: the one that it requires, none if it requires
  /// none.
  std::optional<std::uint64_t> weight_version;
  friend bool operator==(const batch_accepted&, const batch_accepted&) = default;
};

/// The answer to a request that has nothing else to say.
struct request_done {
  friend bool operator==(const request_done&, const request_done&) = default;
};

/// The answer to a request that failed, or, pushed with a batch key, the end of a batch that cannot
/// go on.
struct request_failed {
  errc code = errc::ok;
  std::string message; ///< One line: what, where, the numbers, what to do.
  std::string detail;
  std::string batch_key;
  friend bool operator==(const request_failed&, const request_failed&) = default;
};

struct worker_status {
  worker_id worker;
  std::string name;
  std::string state; ///< joining, ready, stale, draining, lost.
  std::uint64_t pid = 0;
  std::string endpoint;
  std::uint64_t running = 0; ///< Responses.
  std::uint64_t waiting = 0;
  std::uint64_t kv_blocks_total = 0;
  std::uint64_t kv_blocks_used = 0;
  std::uint64_t kv_blocks_parked = 0;
  std::uint64_t kv_tokens_spilled = 0; ///< Kept outside the blocks.
  std::uint64_t generated_tokens = 0;
  std::uint64_t steps = 0;
  double busy_s = 0;
  std::uint64_t epoch = 0;
  friend bool operator==(const worker_status&, const worker_status&) = default;
};

struct batch_status {
  std::string batch_key;
  std::string policy;
  std::uint64_t responses = 0;
  std::uint64_t finished = 0;
  std::uint64_t running = 0;
  std::uint64_t waiting = 0;
  std::uint64_t generated_tokens = 0;
  friend bool operator==(const batch_status&, const batch_status&) = default;
};

struct status_report {
  std::string numerics_profile;
  std::uint64_t weight_version = 0;
  std::string model;
  std::vector<worker_status> workers;
  std::vector<batch_status> batches;
  std::uint64_t live_groups = 0;
  double uptime_s = 0;
  weights_status weights;
  friend bool operator==(const status_report&, const status_report&) = default;
};

// -- pushed ---------------------------------------------------------------------------------------

/// Numbers as on the wire.
enum class finish_reason : std::uint8_t { stop = 1, length = 2, cancelled = 3 };

/// Returns the name used in responses.jsonl and metrics.
constexpr std::string_view to_string(finish_reason reason) noexcept {
  switch (reason) {
    case finish_reason::stop: return "stop";
    case finish_reason::length: return "length";
    case finish_reason::cancelled: return "cancelled";
  }
  return "unknown";
}

/// The weights that made tokens [start, end) of a response.
struct weight_span {
  std::uint64_t version = 0;
  std::uint32_t start = 0;
  std::uint32_t end = 0;
  friend bool operator==(const weight_span&, const weight_span&) = default;
};

/// Ids of the experts that a response's positions were sent to, as `layout`: of positions
/// [start, prompt + tokens - 1), as far as there are any.
struct routed_experts {
  std::uint32_t start = 0;
  expert_layout layout;
  std::string ids;
  friend bool operator==(const routed_experts&, const routed_experts&) = default;
};

/// One finished response. `logprobs` has one element a token; `kept_mass` too, or none when no
/// filter is on. Both keep their bits on the wire. The spans cover all tokens in order.
struct response_ready {
  std::string batch_key;
  std::uint64_t sequence = 0; ///< 1, 2, ... within the batch.
  std::uint32_t group = 0;
  std::uint32_t index = 0;
  std::string id;
  std::vector<token_id> prompt_token_ids; ///< Empty unless echo_prompts was set.
  std::vector<token_id> token_ids;
  std::vector<float> logprobs;
  std::vector<float> kept_mass;
  finish_reason reason = finish_reason::stop;
  std::vector<weight_span> weight_versions;
  std::uint64_t response_seed = 0;
  std::string numerics_profile; ///< That made the bits; "" if cancelled before the batch began.
  std::optional<routed_experts> experts = {}; ///< When the batch asks for them.
  friend bool operator==(const response_ready&, const response_ready&) = default;
};

struct worker_summary {
  worker_id worker;
  std::string name;
  std::uint64_t tokens = 0;
  double tokens_per_s = 0;
  double busy_s = 0;
  double idle_fraction = 0;
  std::uint64_t chunks = 0;
  std::uint64_t migrations = 0; ///< KV images it received.
  std::uint64_t migrated_bytes = 0;
  std::uint64_t recomputed_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t draft_tokens = 0;
  std::uint64_t accepted_tokens = 0;
  double mean_acceptance_length = 0;
  friend bool operator==(const worker_summary&, const worker_summary&) = default;
};

/// The fields of summary.json, by the same names.
struct batch_summary {
  std::uint64_t responses = 0;
  std::uint64_t tokens = 0;
  double wall_s = 0;
  double tokens_per_s = 0;
  double makespan_s = 0;
  double tail_s = 0; ///< Time with at most 10 % of the responses unfinished.
  double worker_idle_fraction = 0;
  std::uint64_t chunks = 0;
  std::uint64_t migrations = 0;
  std::uint64_t migrated_bytes = 0;
  std::uint64_t recomputed_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t draft_tokens = 0;
  std::uint64_t accepted_tokens = 0;
  double mean_acceptance_length = 0;
  std::string numerics_profile;
  std::string policy;
  std::string speculate;
  std::vector<worker_summary> workers;
  friend bool operator==(const batch_summary&, const batch_summary&) = default;
};

/// The last item of a batch, numbered after the last result. Once it is acknowledged the scheduler
/// may forget the batch.
struct batch_done {
  std::string batch_key;
  std::uint64_t sequence = 0;
  batch_summary summary;
  friend bool operator==(const batch_done&, const batch_done&) = default;
};

using event = std::variant<batch_accepted, request_done, request_failed, status_report,
                           response_ready, batch_done, weights_begun, weights_served, scored>;

struct event_envelope {
  std::uint64_t request_id = 0; ///< Of the request that it answers; 0 when pushed.
  event body;
};

} // namespace rollcast::wire
