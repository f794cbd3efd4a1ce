#pragma once

#include "cli/device.hpp"
#include "cluster/policy/limits.hpp"
#include "cluster/security/client_limits.hpp"
#include "cluster/security/tls_files.hpp"
#include "cluster/wire/client.hpp"
#include "cluster/wire/messages.hpp"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

/// One function a subcommand; each returns the exit code. main.cpp turns flags into the options.
namespace rollcast::cli {

struct score_options {
  device_options device;
  bool numerics_given = false; ///< Else the profile recorded in the file is used.
  std::filesystem::path responses;
  std::optional<float> temperature; ///< Else the one recorded with each response.
  std::filesystem::path dump;       ///< Directory for what the model computes; "": none.
  bool dump_values = false;         ///< Else hashes of rows only.
  std::uint32_t dump_rows = 0;      ///< Values of the first rows of a sequence only; 0: of all.
  std::uint64_t dump_bytes_max = std::uint64_t{4} << 30;
};

/// Compares teacher-forced log-probabilities with those in a responses.jsonl.
int run_score(const score_options& options);

/// Names the first place where two dumps of `score` differ.
int run_compare(const std::filesystem::path& a, const std::filesystem::path& b);

struct bench_engine_options {
  std::string device = "cpu";
  std::filesystem::path model;  ///< "" makes one of 100 M (active) parameters.
  std::string family = "dense"; ///< Of the one that is made: or "moe".
  std::uint32_t threads = 0;    ///< 0: all processors.
  std::string profile;          ///< "" is both.
  std::string instruction_set;
  std::uint32_t repeats = 3; ///< The median counts.
  std::filesystem::path out; ///< "" is stdout.
};

/// Measures prefill and decode, by default on a random-weight model of 100 M (active) parameters;
/// on a GPU also what it could do at most, and the price of exact products.
int run_bench_engine(const bench_engine_options& options);

struct bench_scheduler_options {
  std::uint32_t workers = 10'000;
  std::uint32_t responses = 1'000'000; ///< Alive at all times.
  double seconds = 5;                  ///< Timed in the steady state, for ample and scarce KV each.
  std::filesystem::path out;           ///< "" is stdout.
};

/// Measures the scheduling policy alone: decisions per second on one core, and its memory.
int run_bench_scheduler(const bench_scheduler_options& options);

struct bench_draft_options {
  std::uint32_t groups = 64; ///< Made-up ones, for the costs.
  std::uint32_t responses = 8;
  std::uint32_t tokens = 4096; ///< Of each response.
  /// Recorded responses to replay for the acceptance length; "": some of the made-up groups.
  std::filesystem::path responses_file;
  std::filesystem::path out; ///< "" is stdout.
};

/// Measures the suffix index of a group: time and memory, and how often its drafts are right.
int run_bench_draft(const bench_draft_options& options);

struct bench_speculation_options {
  std::string numerics{default_profile};
  std::uint32_t threads = 0;
  std::uint32_t repeats = 3;
  std::uint32_t draft_width = 1;
  std::filesystem::path responses_file; ///< What to replay; "": made-up streams.
  std::filesystem::path out;
};

/// Tokens a second with each way of drafting at batch 1, 4, 16 and 64, on the model of `bench
/// engine` replaying recorded streams.
int run_bench_speculation(const bench_speculation_options& options);

struct bench_drafters_options {
  device_options device; ///< With the drafter's model.
  std::filesystem::path prompts;
  std::uint32_t groups = 16; ///< Of the file, the first ones.
  std::uint32_t group_size = 8;
  std::uint32_t max_new_tokens = 512;
  float temperature = 1.0f;
  std::uint32_t repeats = 3;
  std::filesystem::path out;
};

/// Tokens a second and acceptance lengths of a drafter's model at batch 1, 4, 16 and 64, beside
/// those of groups, of both as `auto` takes them, and of none; and with other noise than shared.
int run_bench_drafters(const bench_drafters_options& options);

struct bench_weights_options {
  std::string numerics{default_profile};
  std::uint32_t workers = 2;
  std::uint32_t repeats = 6; ///< Updates.
  std::filesystem::path out;
};

/// Weight updates of a running cluster, on the model of `bench engine`, beside ZeroMQ alone.
int run_bench_weights(const bench_weights_options& options);

struct make_model_options {
  std::string shape;         ///< One of `model_shapes`.
  std::filesystem::path out; ///< A new directory, or an empty one.
  std::uint64_t seed = 1;
  std::string dtype = "bf16";
  std::uint32_t layers = 0; ///< 0: as many as the shape has.
  std::uint32_t shard_mib = 1024;
  std::uint32_t threads = 0; ///< 0: all processors.
};

/// Writes a random-weight checkpoint of a real model's shape, with a tokenizer.
int run_make_model(const make_model_options& options);

/// Makes a CURVE key pair: `prefix`.secret and `prefix`.public.
int run_keys_new(const std::filesystem::path& prefix);

struct status_options {
  std::string connect;
  wire::controller_keys keys;
  bool watch = false;
  bool json = false;
  std::chrono::milliseconds timeout{5000};
};

/// Prints workers, epochs, queues and live groups.
int run_status(const status_options& options);

struct journal_options {
  std::filesystem::path journal;
  bool json = false;
};

/// Prints what a journal knows, also while a scheduler writes it.
int run_journal_inspect(const journal_options& options);

/// Gives the space back that a journal does not use; refuses while a scheduler has it.
int run_journal_compact(const journal_options& options);

struct weights_options {
  std::string connect;
  wire::controller_keys keys;
  std::filesystem::path from; ///< Checkpoint directory, which the scheduler reads.
  bool rollback = false;      ///< In place of `from`.
  std::uint64_t epoch = 0;    ///< 0: the next.
  std::string flip = "batch"; ///< Or "chunk".
  bool allow_non_finite = false;
  std::uint32_t timeout_s = 600; ///< Until the fleet serves the new epoch.
  std::chrono::milliseconds contact_timeout{5000};
};

/// Publishes a new epoch from a checkpoint directory, or goes back to the one before.
int run_weights(const weights_options& options);

struct discard_options {
  std::string connect;
  wire::controller_keys keys;
  std::string batch_key;
  std::chrono::milliseconds timeout{10000}; ///< Without a word of the scheduler.
};

/// Ends a batch that nobody wants any more and acknowledges its results unread, so that the
/// scheduler forgets them.
int run_discard(const discard_options& options);

/// Keys between the processes of a cluster.
struct cluster_keys {
  std::filesystem::path data_key; ///< CURVE, of the sockets that carry data; "": none.
  tls_options tls;                ///< Of the connections between scheduler and workers.
};

/// Who may be a controller, and how much of one there may be.
struct door_flags {
  std::filesystem::path secret;  ///< CURVE secret key file of the scheduler; "": no keys.
  std::filesystem::path clients; ///< Allow list.
  std::uint32_t grace_s = 3600;  ///< For a key that was replaced in its file.
  std::uint32_t connections_max = 8'192;
  std::uint32_t connections_per_address_max = 2'048;
  client_limits client; ///< Where the allow list says nothing, and of an address without keys.
};

/// Where a scheduler listens. Port 0 takes a free one.
struct scheduler_options {
  std::string listen = "tcp://127.0.0.1:7450"; ///< For controllers (ZeroMQ).
  std::string control_address = "127.0.0.1";   ///< For workers (CAF).
  std::uint16_t control_port = 7451;
  std::string weights_advertise; ///< Host that workers dial for weights; "": `control_address`.
  std::uint16_t weights_port = 0;
  std::string metrics_address = "127.0.0.1";
  std::uint16_t metrics_port = 7452;
  bool no_metrics = false;
  std::uint32_t lost_after_ms = 3000; ///< A silent worker is given up after this long.
  std::string policy = "context";
  std::uint32_t chunk_tokens = 1024;
  std::string batches = "share";        ///< Or "wait": one after another.
  std::string kv_prices = "measured";   ///< Or "assumed": no decision depends on timings.
  std::uint32_t weights_receive_s = 60; ///< Silence of a controller that ends its weight update.
  std::filesystem::path journal;        ///< Survives this process; "": none.
  std::uint32_t journal_max_mib = 16'384;
  std::uint32_t drain_ms = 10'000; ///< For edges to come in after SIGTERM.
  door_flags door;
  cluster_keys keys;
  int announce_fd = -1;
};

int run_scheduler(const scheduler_options& options);

/// Where a draft server listens. Port 0 takes a free one.
struct draft_server_command_options {
  std::string listen = "tcp://127.0.0.1:7453"; ///< For workers (ZeroMQ).
  std::string metrics_address = "127.0.0.1";
  std::uint16_t metrics_port = 7454;
  bool no_metrics = false;
  std::uint32_t memory_mib = 1024; ///< Of what groups have written.
  std::filesystem::path data_key;  ///< CURVE; "": none.
  int announce_fd = -1;
};

int run_draft_server(const draft_server_command_options& options);

struct worker_options {
  device_options device;
  std::string name;
  std::string scheduler_host = "127.0.0.1";
  std::uint16_t scheduler_port = 7451;
  std::string data_address = "127.0.0.1"; ///< Bound for peers that fetch KV.
  std::string data_advertise;             ///< What they dial; "": `data_address`.
  std::uint16_t data_port = 0;
  std::uint16_t weights_port = 0; ///< For peers that pull new weights.
  std::uint32_t weight_threads = 1;
  cluster_keys keys;
  std::string metrics_address = "127.0.0.1";
  std::uint16_t metrics_port = 0;
  bool no_metrics = false;
  std::uint32_t lost_after_ms = 3000;
  std::uint32_t drain_ms = 20'000;  ///< After SIGTERM; below the grace period of whoever sends it.
  std::uint32_t give_up_s = 60;     ///< Without a scheduler it ends after so long.
  std::uint32_t stuck_after_s = 60; ///< /healthz fails once its actor has stood still so long.
  int announce_fd = -1;
};

int run_worker(const worker_options& options);

/// What `up`, and `run` without `--connect`, start.
struct cluster_options {
  device_options device;
  scheduler_options scheduler;
  std::uint32_t workers = 1;
};

int run_up(const cluster_options& options);

struct bench_policies_options {
  cluster_options cluster; ///< On free ports, with KV as scarce as `device.kv_blocks`.
  std::filesystem::path prompts;
  std::uint32_t group_size = 8;
  std::uint32_t max_new_tokens = 1536;
  std::uint64_t seed = 1;
  std::optional<std::uint32_t> chunk_tokens;
  std::uint32_t repeats = 5; ///< Runs of each policy; medians count.
  std::filesystem::path out; ///< "" is stdout.
};

/// Runs one batch with `static` and with `context` in turn on one private cluster and compares
/// makespan, tail and every bit of the responses.
int run_bench_policies(const bench_policies_options& options);

struct run_options {
  std::string connect;        ///< "" starts a private cluster.
  wire::controller_keys keys; ///< With `connect`.
  cluster_options cluster;
  std::filesystem::path prompts;
  std::filesystem::path out;
  std::filesystem::path tokenizer; ///< "": the model directory's, if it has one.
  std::uint32_t group_size = 1;
  wire::sampling_params sampling;
  std::uint64_t seed = 0;
  std::string batch_key;
  std::string policy;
  std::optional<std::uint32_t> chunk_tokens;
  bool force_migration = false;
  bool routed_experts = false; ///< Have the ids of the experts that were chosen in the results,
  std::optional<std::uint32_t> routed_experts_from; ///< from this position on; implies the former.
  std::chrono::milliseconds timeout{10000};         ///< For an answer of the scheduler.
  std::uint32_t patience_s = 60; ///< For a scheduler that was lost, with `connect`.
};

/// Submits a batch, collects it, and writes responses.jsonl and summary.json.
int run_run(const run_options& options);

struct simulate_options {
  std::string workload; ///< moonlight, qwen2-vl-72b, kimi-k2, or a trace file.
  std::string policy = "context";
  std::string speculate = "off"; ///< off, self, group or auto.
  std::string cost_model;        ///< A preset, or a file of `bench engine`; "": the workload's own.
  std::uint64_t seed = 1;
  std::uint32_t seeds = 1; ///< Runs seed, seed + 1, ... and reports mean and spread.
  std::uint32_t chunk_tokens = 1024;
  std::uint32_t reserve_tokens = policy::policy_limits{}.reserve_tokens;
  std::uint32_t tokens_max = 0; ///< Of a trace; 0: its longest output.
  bool no_probe = false;        ///< context: no probes first.
  bool oracle_groups = false;   ///< context: each group is told how long its longest member is.
  std::optional<std::uint32_t> workers;
  std::optional<std::uint32_t> kv_blocks;
  std::optional<std::uint32_t> spill_gib;
  std::optional<double> migration_gbps; ///< Gigabits a second of one worker.
  std::optional<double> correlation;    ///< Share of length variance between prompts.
  std::filesystem::path plot;           ///< SVG of the first seed.
  std::filesystem::path export_trace;   ///< A responses.jsonl to turn into a trace, and no more.
  std::filesystem::path out;            ///< "" is stdout.
};

/// Runs the real policy against a cost model, or exports a trace.
int run_simulate(const simulate_options& options);

} // namespace rollcast::cli
