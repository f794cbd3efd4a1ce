#include "cli/local_launch.hpp"

#include "cli/drafting.hpp"
#include "cli/stop_signal.hpp"
#include "cluster/security/curve_keys.hpp"
#include "cluster/wire/client.hpp"
#include "engine/model/checkpoint.hpp"
#include "engine/model/config.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

namespace rollcast::cli {

namespace {

void add_file(std::vector<std::string>& arguments, const char* flag,
              const std::filesystem::path& file) {
  if (!file.empty())
    arguments.insert(arguments.end(), {flag, file.string()});
}

/// What every process of the cluster is told.
void add_keys(std::vector<std::string>& arguments, const cluster_keys& keys) {
  add_file(arguments, "--data-key", keys.data_key);
  add_file(arguments, "--tls-cert", keys.tls.certificate);
  add_file(arguments, "--tls-key", keys.tls.key);
  add_file(arguments, "--tls-ca", keys.tls.ca);
}

std::vector<std::string> scheduler_arguments(const scheduler_options& options) {
  std::vector<std::string> arguments{"--listen",
                                     options.listen,
                                     "--control-address",
                                     options.control_address,
                                     "--metrics-address",
                                     options.metrics_address,
                                     "--control-port",
                                     std::to_string(options.control_port),
                                     "--metrics-port",
                                     std::to_string(options.metrics_port),
                                     "--policy",
                                     options.policy,
                                     "--chunk-tokens",
                                     std::to_string(options.chunk_tokens),
                                     "--batches",
                                     options.batches,
                                     "--kv-prices",
                                     options.kv_prices,
                                     "--lost-after-ms",
                                     std::to_string(options.lost_after_ms),
                                     "--weights-receive-s",
                                     std::to_string(options.weights_receive_s),
                                     "--drain-ms",
                                     std::to_string(options.drain_ms)};
  if (options.no_metrics)
    arguments.emplace_back("--no-metrics");
  if (!options.journal.empty())
    arguments.insert(arguments.end(), {"--journal", options.journal.string()});
  const auto& door = options.door;
  const auto number = [&arguments](const char* flag, std::uint32_t value) {
    arguments.insert(arguments.end(), {flag, std::to_string(value)});
  };
  number("--journal-max-mib", options.journal_max_mib);
  number("--curve-grace-s", door.grace_s);
  number("--connections-max", door.connections_max);
  number("--connections-per-address-max", door.connections_per_address_max);
  number("--client-batches-max", door.client.batches);
  number("--client-groups-max", door.client.groups);
  number("--client-kept-max", door.client.kept);
  number("--client-responses-max", door.client.responses);
  number("--client-requests-max", door.client.requests);
  number("--client-tokens-max", door.client.tokens);
  number("--client-connections-max", door.client.connections);
  add_file(arguments, "--curve-secret", door.secret);
  add_file(arguments, "--curve-clients", door.clients);
  add_keys(arguments, options.keys);
  return arguments;
}

std::vector<std::string> worker_arguments(const cluster_options& options, std::uint32_t number) {
  const device_options& device = options.device;
  const auto processors = std::max(1u, std::thread::hardware_concurrency());
  const auto threads =
    device.threads != 0 ? device.threads : std::max(1u, processors / options.workers);
  std::vector<std::string> arguments{"--model",
                                     device.model.string(),
                                     "--device",
                                     device.device,
                                     "--threads",
                                     std::to_string(threads),
                                     "--kv-blocks",
                                     std::to_string(device.kv_blocks),
                                     "--block-tokens",
                                     std::to_string(device.block_tokens),
                                     "--max-batch",
                                     std::to_string(device.max_batch),
                                     "--prefill-rows",
                                     std::to_string(device.prefill_rows),
                                     "--name",
                                     "worker-" + std::to_string(number),
                                     "--kv-spill-memory-mib",
                                     std::to_string(device.kv_spill_memory_mib),
                                     "--kv-spill-disk-mib",
                                     std::to_string(device.kv_spill_disk_mib),
                                     "--kv-spill-dir",
                                     device.kv_spill_dir.string(),
                                     "--speculate",
                                     device.speculate,
                                     "--draft-width",
                                     std::to_string(device.draft_width),
                                     "--collectives",
                                     device.collectives,
                                     "--lost-after-ms",
                                     std::to_string(options.scheduler.lost_after_ms),
                                     "--drain-ms",
                                     std::to_string(options.scheduler.drain_ms)};
  if (options.scheduler.no_metrics)
    arguments.emplace_back("--no-metrics");
  add_keys(arguments, options.scheduler.keys);
  if (device.device != "cpu") // all of them have this one
    arguments.insert(arguments.end(), {"--gpu-workers", std::to_string(std::max(device.gpu_workers,
                                                                                options.workers))});
  if (!device.numerics.empty())
    arguments.insert(arguments.end(), {"--numerics", device.numerics});
  add_file(arguments, "--draft-model", device.draft_model);
  for (const auto& [flag, value] :
       {std::pair{"--speculative-num-steps", device.draft_steps},
        std::pair{"--speculative-eagle-topk", device.draft_topk},
        std::pair{"--speculative-num-draft-tokens", device.draft_tokens}})
    if (value != 0)
      arguments.insert(arguments.end(), {flag, std::to_string(value)});
  if (!device.draft_server.empty())
    arguments.insert(arguments.end(), {"--draft-server", device.draft_server});
  if (!device.instruction_set.empty())
    arguments.insert(arguments.end(), {"--instruction-set", device.instruction_set});
  return arguments;
}

/// Of the draft server that comes with the workers, if drafts of one can help another.
std::vector<std::string> draft_server_arguments(const cluster_options& options) {
  const auto& how = options.device.speculate;
  if (options.workers < 2 || !options.device.draft_server.empty()
      || (how != "group" && how != "auto"))
    return {};
  std::vector<std::string> arguments{"--metrics-port", "0"};
  add_file(arguments, "--data-key", options.scheduler.keys.data_key);
  if (options.scheduler.no_metrics)
    arguments.emplace_back("--no-metrics");
  return arguments;
}

/// Waits until the scheduler counts every worker. A worker says that it is there when its ports are
/// bound; a batch that comes before it is registered would be shared out without it.
result<void> await_workers(local_cluster& cluster, const cluster_options& options,
                           std::chrono::milliseconds span) {
  const auto workers = options.workers;
  const auto deadline = std::chrono::steady_clock::now() + span;
  wire::controller_keys keys;
  if (const auto& secret = options.scheduler.door.secret; !secret.empty()) {
    // Who holds the scheduler's own key is let in.
    const auto own = load_keys(secret);
    if (!own)
      return fail(own);
    keys = {own->public_key, secret};
  }
  auto client = wire::controller_client::connect(cluster.endpoint(), span, std::move(keys));
  if (!client)
    return fail(client);
  for (;;) {
    const auto status = client->status();
    if (!status)
      return fail(status);
    const auto ready =
      std::count_if(status->workers.begin(), status->workers.end(),
                    [](const wire::worker_status& w) { return w.state == "ready"; });
    if (ready >= static_cast<std::ptrdiff_t>(workers))
      return {};
    if (stop_requested())
      return fail(errc::cancelled, "stopped before all workers were registered");
    if (auto alive = cluster.supervise(); !alive)
      return alive;
    if (std::chrono::steady_clock::now() > deadline)
      return fail(errc::timed_out, std::to_string(ready) + " of " + std::to_string(workers)
                                     + " workers are registered after "
                                     + std::to_string(span.count()) + " ms");
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
}

} // namespace

result<local_cluster> launch(const cluster_options& options, bool restart_workers) {
  if (options.workers == 0)
    return fail(errc::bad_config, "workers is 0: a cluster needs at least 1");
  if (const auto profile = profile_of(options.device); !profile)
    return fail(profile);
  if (const auto config = load_config(options.device.model); !config)
    return fail(config);
  if (const auto files = checkpoint::open(options.device.model); !files)
    return fail(files);
  auto device = options.device; // each worker fills in the same
  if (const auto settled = settle_drafts(device); !settled)
    return fail(settled);
  local_cluster_options local;
  local.restart_workers = restart_workers;
  local.restart_scheduler = !options.scheduler.journal.empty();
  // Two seconds for a step that is under way and for the end of the process.
  local.stop_grace = std::chrono::milliseconds{options.scheduler.drain_ms + 2'000};
  local.scheduler_arguments = scheduler_arguments(options.scheduler);
  for (std::uint32_t number = 1; number <= options.workers; ++number)
    local.worker_arguments.push_back(worker_arguments(options, number));
  local.draft_server_arguments = draft_server_arguments(options);
  auto cluster = local_cluster::start(local);
  if (!cluster)
    return cluster;
  if (auto ok = await_workers(*cluster, options, local.start_timeout); !ok)
    return fail(ok);
  return cluster;
}

} // namespace rollcast::cli
