#include "cli/commands.hpp"
#include "cli/config_file.hpp"
#include "cli/exit_code.hpp"
#include "cli/flags.hpp"
#include "cli/last_words.hpp"
#include "cli/model_flags.hpp"
#include "cli/plan.hpp"
#include "cli/security_flags.hpp"
#include "cli/version.hpp"
#include "cluster/batch/admission.hpp"
#include "engine/collective/nccl.hpp"
#include "engine/memory/heap.hpp"

#include <CLI/CLI.hpp>
#include <spdlog/cfg/env.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// The command line: flags to options, nothing else. Every option is also an environment variable,
/// ROLLCAST_ and the flag in capitals with underscores, and a key of a `--config` file.
namespace rollcast::cli {

namespace {

void add_drain(CLI::App& app, std::uint32_t& ms) {
  add(app, "--drain-ms", ms,
      "after SIGTERM: for running chunks to end or be cut, and for what is left to be handed over")
    ->check(CLI::Range(0u, 3'600'000u));
}

void add_scheduler(CLI::App& app, scheduler_options& options) {
  add(app, "--listen", options.listen, "ZeroMQ endpoint for controllers");
  add(app, "--control-address", options.control_address, "address that workers dial");
  add(app, "--control-port", options.control_port, "port that workers dial; 0: any");
  add(app, "--weights-advertise", options.weights_advertise,
      "host that they dial for new weights; empty: the control address, or the host's name if that "
      "is every address");
  add(app, "--weights-port", options.weights_port, "its port; 0: any");
  add(app, "--weights-receive-s", options.weights_receive_s,
      "an update whose controller is silent for so long before its commit is aborted")
    ->check(CLI::Range(1u, 86'400u));
  add(app, "--metrics-address", options.metrics_address, "address of /metrics");
  add(app, "--metrics-port", options.metrics_port, "port of /metrics; 0: any");
  add(app, "--journal", options.journal,
      "file that keeps batches, results and the weight epoch for the next scheduler; empty: none");
  add(app, "--journal-max-mib", options.journal_max_mib,
      "size of that file beyond which no new batches are taken")
    ->check(at_least_1);
  add_flag(app, "--no-metrics", options.no_metrics, "serve no metrics");
  add(app, "--lost-after-ms", options.lost_after_ms, "a silent peer is given up after so long")
    ->check(CLI::Range(100u, 3'600'000u));
  add_drain(app, options.drain_ms);
  add_door(app, options.door);
  add_cluster_keys(app, options.keys);
}

/// The policies of a real cluster; the line that refuses another is admission's.
CLI::Validator real_policy() {
  return {[](std::string& name) {
            const auto known = check_policy(name);
            return known ? std::string{} : known.error().detail;
          },
          "static|divided|context"};
}

void add_kv_prices(CLI::App& app, scheduler_options& options) {
  add(app, "--kv-prices", options.kv_prices,
      "KV is moved, spilled or computed again by what workers have measured, or as assumed")
    ->check(CLI::IsMember({"measured", "assumed"}));
}

void add_policy(CLI::App& app, scheduler_options& options) {
  add(app, "--policy", options.policy, "static, divided or context")->check(real_policy());
  add(app, "--chunk-tokens", options.chunk_tokens, "longest chunk; 0: unlimited");
  add(app, "--batches", options.batches, "batches that overlap share the workers, or wait in turn")
    ->check(CLI::IsMember({"share", "wait"}));
  add_kv_prices(app, options);
}

void add_hidden_announce(CLI::App& app, int& fd) {
  app.add_option("--announce-fd", fd, "descriptor that hears when this process is ready")
    ->group("");
}

void add_up(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("up", "a scheduler and workers on this machine, until Ctrl-C");
  auto options = std::make_shared<cluster_options>();
  add_config(*app);
  add_device(*app, options->device, true)->required();
  add_scheduler(*app, options->scheduler);
  add_policy(*app, options->scheduler);
  add(*app, "--workers", options->workers, "worker processes")->check(at_least_1);
  app->callback([options, &chosen] { chosen = [options] { return run_up(*options); }; });
}

void add_scheduler_command(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("scheduler", "the scheduler of a cluster");
  auto options = std::make_shared<scheduler_options>();
  add_config(*app);
  add_scheduler(*app, *options);
  add_policy(*app, *options);
  add_hidden_announce(*app, options->announce_fd);
  app->callback([options, &chosen] { chosen = [options] { return run_scheduler(*options); }; });
}

void add_draft_server_command(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("draft-server", "tells workers what siblings write elsewhere");
  auto options = std::make_shared<draft_server_command_options>();
  add_config(*app);
  add(*app, "--listen", options->listen, "ZeroMQ endpoint for workers");
  add(*app, "--metrics-address", options->metrics_address, "address of /metrics");
  add(*app, "--metrics-port", options->metrics_port, "port of /metrics; 0: any");
  add_flag(*app, "--no-metrics", options->no_metrics, "serve no metrics");
  add_data_key(*app, options->data_key);
  add(*app, "--memory-mib", options->memory_mib, "memory for what groups have written")
    ->check(at_least_1);
  add_hidden_announce(*app, options->announce_fd);
  app->callback([options, &chosen] { chosen = [options] { return run_draft_server(*options); }; });
}

void add_worker_command(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("worker", "one worker: one process, one device, one engine");
  auto options = std::make_shared<worker_options>();
  add_config(*app);
  add_device(*app, options->device, true)->required();
  add_cluster_keys(*app, options->keys);
  add(*app, "--name", options->name, "name in status and metrics; empty: host and pid");
  add(*app, "--scheduler-host", options->scheduler_host, "host of the scheduler");
  add(*app, "--scheduler-port", options->scheduler_port, "its control port");
  add(*app, "--data-address", options->data_address, "address to bind for peers that fetch KV");
  add(*app, "--data-advertise", options->data_advertise,
      "host that they dial; empty: the data address");
  add(*app, "--data-port", options->data_port, "its port; 0: any");
  add(*app, "--weights-port", options->weights_port,
      "port for peers that pull new weights, on the data address; 0: any");
  add(*app, "--weight-threads", options->weight_threads,
      "threads that pack new weights while the device serves")
    ->check(at_least_1);
  add(*app, "--metrics-address", options->metrics_address, "address of /metrics");
  add(*app, "--metrics-port", options->metrics_port, "port of /metrics; 0: any");
  add_flag(*app, "--no-metrics", options->no_metrics, "serve no metrics");
  add(*app, "--lost-after-ms", options->lost_after_ms, "a silent peer is given up after so long")
    ->check(CLI::Range(100u, 3'600'000u));
  add_drain(*app, options->drain_ms);
  add(*app, "--give-up-s", options->give_up_s,
      "it ends, with the weights that it has, after so long without a scheduler")
    ->check(CLI::Range(1u, 86'400u));
  add(*app, "--stuck-after-s", options->stuck_after_s,
      "/healthz fails once the worker has stood still for so long: above its longest step")
    ->check(CLI::Range(1u, 86'400u));
  add_hidden_announce(*app, options->announce_fd);
  app->callback([options, &chosen] { chosen = [options] { return run_worker(*options); }; });
}

void add_sampling(CLI::App& app, run_options& options) {
  auto& how = options.sampling;
  how.max_new_tokens = 512;
  add(app, "--max-new-tokens", how.max_new_tokens, "longest response");
  add(app, "--min-new-tokens", how.min_new_tokens, "no stop id before so many tokens");
  add(app, "--temperature", how.temperature, "0 is greedy");
  add(app, "--top-p", how.top_p, "1 is off");
  add(app, "--top-k", how.top_k, "0 is off");
  add(app, "--min-p", how.min_p, "0 is off");
  add(app, "--stop-token-ids", how.stop_token_ids, "a,b,c: ids that end a response, besides eos")
    ->delimiter(',');
  add_flag(app, "--ignore-eos", how.ignore_eos, "the model's own end ids do not end a response");
}

/// A private cluster must not collide with one that is up.
void use_free_ports(scheduler_options& options) {
  options.listen = "tcp://127.0.0.1:*";
  options.control_port = 0;
  options.metrics_port = 0;
}

void add_run(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("run", "submit a batch of prompts and collect the responses");
  auto options = std::make_shared<run_options>();
  auto& cluster = options->cluster;
  use_free_ports(cluster.scheduler);
  add_config(*app);
  add(*app, "--prompts", options->prompts, "prompts.jsonl")->required();
  add(*app, "--out", options->out, "directory for responses.jsonl and summary.json")->required();
  add(*app, "--connect", options->connect, "tcp://host:port of a scheduler; not with --model");
  add_controller_keys(*app, options->keys);
  add_device(*app, cluster.device, true);
  add(*app, "--workers", cluster.workers, "workers of the private cluster")->check(at_least_1);
  add(*app, "--tokenizer", options->tokenizer, "tokenizer.json; empty: the model's");
  add(*app, "--group-size", options->group_size, "responses of each prompt");
  add_sampling(*app, *options);
  add(*app, "--seed", options->seed, "seed of the batch");
  add(*app, "--batch-key", options->batch_key, "idempotency key; empty: a fresh one");
  add(*app, "--patience-s", options->patience_s,
      "a scheduler that was lost may come back for so long, with --connect")
    ->check(CLI::Range(0u, 86'400u));
  add(*app, "--policy", options->policy, "static, divided or context; without it the scheduler's")
    ->check(real_policy());
  add(*app, "--chunk-tokens", options->chunk_tokens, "longest chunk; 0: unlimited");
  add_kv_prices(*app, cluster.scheduler);
  add(*app, "--lost-after-ms", cluster.scheduler.lost_after_ms,
      "a silent peer is given up after so long")
    ->check(CLI::Range(100u, 3'600'000u));
  add_flag(*app, "--force-migration", options->force_migration,
           "move every response at every chunk edge (a test of exactness)");
  add_flag(*app, "--routed-experts", options->routed_experts,
           "write the ids of the experts that each token was sent to");
  add(*app, "--routed-experts-from", options->routed_experts_from,
      "only of this position and those after it; 0 is the prompt's first token");
  app->add_flag("--debug-rollout-only")
    ->description("known from slime; run never trains, so nothing changes");
  app->callback([options, &chosen] {
    // A model that only the environment names is no contradiction: --connect is nearer.
    auto& model = options->cluster.device.model;
    const char* variable = std::getenv("ROLLCAST_MODEL");
    if (!options->connect.empty() && variable != nullptr && model == variable)
      model.clear();
    chosen = [options] { return run_run(*options); };
  });
}

void add_score(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("score", "compare teacher-forced log-probabilities with a file");
  auto options = std::make_shared<score_options>();
  add_config(*app);
  add_device(*app, options->device, false)->required();
  add(*app, "--responses", options->responses, "responses.jsonl")->required();
  auto* numerics = add(*app, "--numerics", options->device.numerics,
                       "numerics profile; without it the one in the file");
  add(*app, "--temperature", options->temperature, "without it the one of each response");
  auto* dump = add(*app, "--dump", options->dump,
                   "new directory for a hash of every row that every operation computes");
  add_flag(*app, "--dump-values", options->dump_values, "dump the values of the rows too")
    ->needs(dump);
  add(*app, "--dump-rows", options->dump_rows,
      "values of this many rows from the start of each sequence only; 0: of all")
    ->needs(dump);
  add(*app, "--dump-bytes-max", options->dump_bytes_max, "refuse to make a dump larger than this")
    ->needs(dump);
  app->callback([options, numerics, &chosen] {
    options->numerics_given = !numerics->empty();
    chosen = [options] { return run_score(*options); };
  });
}

void add_compare(CLI::App& root, command& chosen) {
  auto* app =
    root.add_subcommand("compare", "name the first place where two dumps of score --dump differ");
  struct dumps {
    std::filesystem::path a;
    std::filesystem::path b;
  };
  auto options = std::make_shared<dumps>();
  app->add_option("a", options->a, "a dump")->required();
  app->add_option("b", options->b, "another dump of the same sequences")->required();
  app->callback(
    [options, &chosen] { chosen = [options] { return run_compare(options->a, options->b); }; });
}

void add_status(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("status", "workers, epochs, queues, live groups");
  auto options = std::make_shared<status_options>();
  add_config(*app);
  options->connect = "tcp://127.0.0.1:7450";
  add(*app, "--connect", options->connect, "tcp://host:port of a scheduler");
  add_controller_keys(*app, options->keys);
  add_flag(*app, "--watch", options->watch, "redraw every second");
  add_flag(*app, "--json", options->json, "print JSON");
  app->callback([options, &chosen] { chosen = [options] { return run_status(*options); }; });
}

void add_weights(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("weights", "publish a new epoch, or go back to the last one");
  auto options = std::make_shared<weights_options>();
  options->connect = "tcp://127.0.0.1:7450";
  add_config(*app);
  add(*app, "--connect", options->connect, "tcp://host:port of a scheduler");
  add_controller_keys(*app, options->keys);
  add(*app, "--from", options->from,
      "checkpoint directory; the scheduler reads it, so it must be there under this name");
  add_flag(*app, "--rollback", options->rollback, "serve the epoch before again");
  add(*app, "--epoch", options->epoch, "number of the new epoch; 0: the next");
  add(*app, "--flip", options->flip,
      "batch: no response has two epochs; chunk: running responses change over at a chunk edge")
    ->check(CLI::IsMember({"batch", "chunk"}));
  add_flag(*app, "--allow-non-finite", options->allow_non_finite, "take NaN and infinities");
  add(*app, "--timeout", options->timeout_s, "seconds until every worker must serve it")
    ->check(CLI::Range(1u, 1'000'000u));
  app->callback([options, &chosen] { chosen = [options] { return run_weights(*options); }; });
}

void add_discard(CLI::App& root, command& chosen) {
  auto* app =
    root.add_subcommand("discard", "end a batch and drop its results, for whoever left it");
  auto options = std::make_shared<discard_options>();
  options->connect = "tcp://127.0.0.1:7450";
  add_config(*app);
  add(*app, "--connect", options->connect, "tcp://host:port of a scheduler");
  add_controller_keys(*app, options->keys);
  add(*app, "--batch-key", options->batch_key, "as `status` lists it")->required();
  app->callback([options, &chosen] { chosen = [options] { return run_discard(*options); }; });
}

void add_keys(CLI::App& root, command& chosen) {
  auto* keys = root.add_subcommand("keys", "key pairs for controllers, schedulers and data");
  keys->require_subcommand(1);
  auto* app = keys->add_subcommand("new", "make a pair: PREFIX.secret and PREFIX.public");
  auto prefix = std::make_shared<std::filesystem::path>();
  app->add_option("--out", *prefix, "PREFIX")->required();
  app->callback([prefix, &chosen] { chosen = [prefix] { return run_keys_new(*prefix); }; });
}

void add_bench_scheduler(CLI::App& bench, command& chosen) {
  auto* app = bench.add_subcommand("scheduler", "the policy: decisions per second and memory");
  auto options = std::make_shared<bench_scheduler_options>();
  add_config(*app);
  add(*app, "--workers", options->workers, "pretend workers")->check(CLI::Range(1, 1'000'000));
  add(*app, "--responses", options->responses, "responses in flight")
    ->check(CLI::Range(1, 100'000'000));
  add(*app, "--seconds", options->seconds, "of each steady state")->check(CLI::PositiveNumber);
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback(
    [options, &chosen] { chosen = [options] { return run_bench_scheduler(*options); }; });
}

void add_bench_policies(CLI::App& bench, command& chosen) {
  auto* app = bench.add_subcommand("policies", "static against context, real runs in alternation");
  auto options = std::make_shared<bench_policies_options>();
  auto& cluster = options->cluster;
  use_free_ports(cluster.scheduler);
  cluster.workers = 2;
  cluster.device.kv_blocks = 400; // under half of what 64 responses of the example hold
  add_config(*app);
  add_device(*app, cluster.device, true)->required();
  add(*app, "--prompts", options->prompts, "prompts.jsonl")->required();
  add(*app, "--workers", cluster.workers, "workers of the private cluster")->check(at_least_1);
  add(*app, "--group-size", options->group_size, "responses of each prompt");
  add(*app, "--max-new-tokens", options->max_new_tokens, "longest response");
  add(*app, "--seed", options->seed, "seed of the batch");
  add(*app, "--chunk-tokens", options->chunk_tokens, "longest chunk of context; 0: unlimited");
  add(*app, "--repeats", options->repeats, "runs of each; medians count")->check(at_least_1);
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback(
    [options, &chosen] { chosen = [options] { return run_bench_policies(*options); }; });
}

void add_bench_speculation(CLI::App& bench, command& chosen) {
  auto* app = bench.add_subcommand("speculation", "tokens a second with each way of drafting");
  auto options = std::make_shared<bench_speculation_options>();
  add_config(*app);
  add(*app, "--numerics", options->numerics, "numerics profile: cpu-f32-v1 or cpu-bf16-v1");
  add(*app, "--threads", options->threads, "threads of the engine; 0: all processors");
  add(*app, "--repeats", options->repeats, "the median counts")->check(at_least_1);
  add(*app, "--draft-width", options->draft_width, "drafted tokens tried in one place; 1: chains")
    ->check(draft_widths);
  add(*app, "--responses-file", options->responses_file,
      "responses.jsonl to replay, 8 groups of 8 with 256 tokens; empty: made-up streams");
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback(
    [options, &chosen] { chosen = [options] { return run_bench_speculation(*options); }; });
}

void add_bench_drafters(CLI::App& bench, command& chosen) {
  auto* app = bench.add_subcommand("drafters", "an MTP layer or EAGLE-3 head beside other drafts");
  auto options = std::make_shared<bench_drafters_options>();
  options->device.speculate = "mtp";
  add_config(*app);
  add_device(*app, options->device, true)->required();
  add(*app, "--prompts", options->prompts, "prompts.jsonl")->required();
  add(*app, "--groups", options->groups, "prompts taken of it")->check(at_least_1);
  add(*app, "--group-size", options->group_size, "responses of each")->check(at_least_1);
  add(*app, "--max-new-tokens", options->max_new_tokens, "of a response")->check(at_least_1);
  add(*app, "--temperature", options->temperature, "0: argmax")->check(CLI::NonNegativeNumber);
  add(*app, "--repeats", options->repeats, "the median counts")->check(at_least_1);
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback(
    [options, &chosen] { chosen = [options] { return run_bench_drafters(*options); }; });
}

void add_bench_draft(CLI::App& bench, command& chosen) {
  auto* app = bench.add_subcommand("draft", "drafts of a group: time, memory, acceptance length");
  auto options = std::make_shared<bench_draft_options>();
  add_config(*app);
  add(*app, "--groups", options->groups, "made-up groups, for the costs")->check(at_least_1);
  add(*app, "--responses", options->responses, "responses of each")->check(at_least_1);
  add(*app, "--tokens", options->tokens, "tokens of each")->check(at_least_1);
  add(*app, "--responses-file", options->responses_file,
      "responses.jsonl to replay for the acceptance length; empty: made-up groups");
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback([options, &chosen] { chosen = [options] { return run_bench_draft(*options); }; });
}

void add_bench_weights(CLI::App& bench, command& chosen) {
  auto* app = bench.add_subcommand("weights", "weight updates of a cluster beside ZeroMQ alone");
  auto options = std::make_shared<bench_weights_options>();
  add_config(*app);
  add(*app, "--numerics", options->numerics, "numerics profile: cpu-f32-v1 or cpu-bf16-v1");
  add(*app, "--workers", options->workers, "worker processes")->check(at_least_1);
  add(*app, "--repeats", options->repeats, "updates; the median counts")->check(at_least_1);
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback([options, &chosen] { chosen = [options] { return run_bench_weights(*options); }; });
}

void add_bench(CLI::App& root, command& chosen) {
  auto* bench = root.add_subcommand("bench", "benchmarks, JSON out");
  bench->require_subcommand(1);
  add_bench_draft(*bench, chosen);
  add_bench_drafters(*bench, chosen);
  add_bench_speculation(*bench, chosen);
  add_bench_policies(*bench, chosen);
  add_bench_scheduler(*bench, chosen);
  add_bench_weights(*bench, chosen);
  auto* app = bench->add_subcommand("engine", "prefill and decode of a 100 M model");
  auto options = std::make_shared<bench_engine_options>();
  add_config(*app);
  add(*app, "--family", options->family, "dense, or moe: 4 of 16 experts, as much of it active")
    ->check(CLI::IsMember({"dense", "moe"}));
  add(*app, "--threads", options->threads, "0: all processors");
  add(*app, "--numerics", options->profile,
      "one profile; empty: all of the device. Only here cuda-bf16-fast-v1, which is not exact");
  add(*app, "--device", options->device, "cpu, or cuda:N for GPU N of this machine");
  add(*app, "--model", options->model, "checkpoint directory; empty: one is made");
  add(*app, "--instruction-set", options->instruction_set, "empty: the best there is");
  add(*app, "--repeats", options->repeats, "the median counts")->check(at_least_1);
  add(*app, "--out", options->out, "file; empty: stdout");
  app->callback([options, &chosen] { chosen = [options] { return run_bench_engine(*options); }; });
}

void add_journal(CLI::App& root, command& chosen) {
  auto* journal = root.add_subcommand("journal", "look at a scheduler's journal, or make it small");
  journal->require_subcommand(1);
  const auto add_command = [&](const std::string& name, const std::string& help, auto run) {
    auto* app = journal->add_subcommand(name, help);
    auto options = std::make_shared<journal_options>();
    add_config(*app);
    add(*app, "--journal", options->journal, "the file that `scheduler --journal` names")
      ->required();
    if (name == "inspect")
      add_flag(*app, "--json", options->json, "print JSON");
    app->callback([options, run, &chosen] { chosen = [options, run] { return run(*options); }; });
  };
  add_command("inspect", "what it knows, also of one in use", run_journal_inspect);
  add_command("compact", "give back the space that it does not use", run_journal_compact);
}

void add_simulate(CLI::App& root, command& chosen) {
  auto* app = root.add_subcommand("simulate", "the real policy against a cost model, JSON out");
  auto options = std::make_shared<simulate_options>();
  add_config(*app);
  auto* batch = add(*app, "--workload", options->workload,
                    "moonlight, qwen2-vl-72b, kimi-k2, or a trace file "
                    "(group,index,prompt_tokens,output_tokens)");
  add(*app, "--policy", options->policy, "static, divided, context or oracle")
    ->check(CLI::IsMember({"static", "divided", "context", "oracle"}));
  add(*app, "--speculate", options->speculate,
      "off, self, group or auto: the published acceptance, see cluster/sim/README.md")
    ->check(CLI::IsMember({"off", "self", "group", "auto"}));
  add(*app, "--cost-model", options->cost_model,
      "a preset (the workloads' names, cpu) or the output of bench engine; empty: the workload's");
  add(*app, "--seed", options->seed, "of the draw");
  add(*app, "--seeds", options->seeds, "so many seeds in a row; mean and spread")
    ->check(CLI::Range(1, 1000));
  add(*app, "--chunk-tokens", options->chunk_tokens, "longest chunk; 0: unlimited");
  add(*app, "--reserve-tokens", options->reserve_tokens,
      "room is reserved up to the next multiple of so many tokens; 1: what the chunk needs");
  add(*app, "--tokens-max", options->tokens_max, "limit of a trace; 0: its longest output");
  add_flag(*app, "--no-probe", options->no_probe, "context without probes first");
  add_flag(*app, "--oracle-groups", options->oracle_groups,
           "context: each group is told the length of its longest member");
  add(*app, "--workers", options->workers, "instead of the cost model's");
  add(*app, "--kv-blocks", options->kv_blocks, "of one worker, instead of the cost model's");
  add(*app, "--spill-gib", options->spill_gib,
      "memory of one worker for KV beside its blocks, instead of the cost model's; 0: none");
  add(*app, "--migration-gbps", options->migration_gbps,
      "Gb/s of one worker, instead of the cost model's")
    ->check(at_least_1);
  add(*app, "--correlation", options->correlation, "share of length variance between prompts")
    ->check(CLI::Range(0.0, 1.0));
  add(*app, "--plot", options->plot, "SVG: running responses over time, of the first seed");
  auto* exported = add(*app, "--export-trace", options->export_trace,
                       "a responses.jsonl: write its trace and stop");
  add(*app, "--out", options->out, "file; empty: stdout");
  batch->excludes(exported);
  app->callback([options, &chosen] { chosen = [options] { return run_simulate(*options); }; });
}

void add_plan(CLI::App& root, command& chosen) {
  auto* app =
    root.add_subcommand("plan", "memory, workers and ports that a model and a batch need");
  auto options = std::make_shared<plan_options>();
  auto& asked = options->asked;
  add_config(*app);
  add(*app, "--model", options->model, "checkpoint directory; its config.json is enough")
    ->required();
  add(*app, "--gpu", options->gpu, "h200, h100, a100, a100-40gb, l40s, or cpu: this machine");
  add(*app, "--memory-gib", options->memory_gib, "memory of one device; 0: as its maker says");
  add(*app, "--memory-percent", asked.memory_percent, "of it for weights and KV");
  add(*app, "--numerics", options->numerics, "numerics profile: cpu-f32-v1 or cpu-bf16-v1");
  add(*app, "--context", asked.context, "prompt and response at the most; 0: the model's");
  add(*app, "--prompt-tokens", asked.prompt_tokens, "of one prompt");
  add(*app, "--response-tokens", asked.response_tokens, "expected in the mean; 0: not known");
  add(*app, "--group-size", asked.group_size, "responses of each prompt");
  add(*app, "--prompts", asked.prompts, "of a batch; 0: tell nothing of batches");
  add(*app, "--workers", asked.workers, "that there are, for the time of a batch");
  add(*app, "--tokens-per-s", asked.tokens_per_s, "measured, of one worker; 0: tell no time")
    ->check(CLI::NonNegativeNumber);
  add(*app, "--max-batch", asked.max_batch, "responses of one step");
  add(*app, "--block-tokens", asked.block_tokens, "positions of one KV block, a multiple of 16");
  add_flag(*app, "--no-updates", options->no_updates, "the weights never change: one copy of them");
  add_flag(*app, "--json", options->json, "print JSON");
  app->callback([options, &chosen] { chosen = [options] { return run_plan(*options); }; });
}

int parse_and_run(int argc, char** argv) {
  CLI::App app{"Rollcast: exact rollouts for synchronous LLM reinforcement learning", "rollcast"};
  app.set_version_flag("--version", version_text());
  app.require_subcommand(1);
  command chosen;
  add_up(app, chosen);
  add_scheduler_command(app, chosen);
  add_worker_command(app, chosen);
  add_draft_server_command(app, chosen);
  add_run(app, chosen);
  add_score(app, chosen);
  add_compare(app, chosen);
  add_status(app, chosen);
  add_weights(app, chosen);
  add_journal(app, chosen);
  add_simulate(app, chosen);
  add_plan(app, chosen);
  add_discard(app, chosen);
  add_keys(app, chosen);
  add_make_model(app, chosen);
  add_bench(app, chosen);
  std::vector<std::string> arguments{argv + 1, argv + argc};
  if (!arguments.empty() && !arguments[0].starts_with("-")
      && find_command(app, arguments[0]) == nullptr)
    return refuse(
      {errc::bad_config, "there is no command '" + arguments[0] + "' (see rollcast --help)", {}});
  auto with_file = with_config_file(app, std::move(arguments));
  if (!with_file)
    return refuse(with_file.error());
  try {
    std::reverse(with_file->begin(), with_file->end()); // as the library wants it
    app.parse(std::move(*with_file));
  } catch (const CLI::Success& e) {
    return app.exit(e); // --help and --version
  } catch (const CLI::Error& e) {
    return refuse({errc::bad_config, std::string{e.what()} + " (see rollcast --help)", {}});
  }
  try {
    return chosen();
  } catch (const std::bad_alloc&) {
    std::terminate();                 // whose line says it best
  } catch (const std::exception& e) { // threads or file names: the library's word
    return refuse({errc::io_failed, e.what(), {}});
  }
}

} // namespace

} // namespace rollcast::cli

int main(int argc, char** argv) {
  rollcast::settle_heap();
  rollcast::keep_nccl_from_blocking(); // here: the environment is only safe to change without
                                       // threads
  rollcast::cli::install_last_words();
  spdlog::set_default_logger(spdlog::stderr_logger_mt("rollcast"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %P %v");
  spdlog::set_level(spdlog::level::warn);
  spdlog::cfg::load_env_levels(); // SPDLOG_LEVEL=info tells more
  return rollcast::cli::parse_and_run(argc, argv);
}
