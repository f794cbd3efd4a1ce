#include "cli/local_launch.hpp"

#include "engine/model/checkpoint.hpp"
#include "engine/model/config.hpp"

#include <algorithm>
#include <string>
#include <thread>
#include <utility>

namespace rollcast::cli {

namespace {

std::vector<std::string> scheduler_arguments(const scheduler_options& options) {
  std::vector<std::string> arguments{"--listen",          options.listen,
                                     "--control-address", options.control_address,
                                     "--metrics-address", options.metrics_address,
                                     "--control-port",    std::to_string(options.control_port),
                                     "--metrics-port",    std::to_string(options.metrics_port),
                                     "--policy",          options.policy,
                                     "--chunk-tokens",    std::to_string(options.chunk_tokens),
                                     "--lost-after-ms",   std::to_string(options.lost_after_ms)};
  if (options.no_metrics)
    arguments.emplace_back("--no-metrics");
  return arguments;
}

std::vector<std::string> worker_arguments(const cluster_options& options, std::uint32_t number) {
  const device_options& device = options.device;
  const auto processors = std::max(1u, std::thread::hardware_concurrency());
  const auto threads =
    device.threads != 0 ? device.threads : std::max(1u, processors / options.workers);
  std::vector<std::string> arguments{
    "--model",         device.model.string(),
    "--numerics",      device.numerics,
    "--threads",       std::to_string(threads),
    "--kv-blocks",     std::to_string(device.kv_blocks),
    "--block-tokens",  std::to_string(device.block_tokens),
    "--max-batch",     std::to_string(device.max_batch),
    "--prefill-rows",  std::to_string(device.prefill_rows),
    "--name",          "worker-" + std::to_string(number),
    "--lost-after-ms", std::to_string(options.scheduler.lost_after_ms)};
  if (options.scheduler.no_metrics)
    arguments.emplace_back("--no-metrics");
  if (!device.instruction_set.empty())
    arguments.insert(arguments.end(), {"--instruction-set", device.instruction_set});
  return arguments;
}

} // namespace

result<local_cluster> launch(const cluster_options& options, bool restart_workers) {
  if (options.workers == 0)
    return fail(errc::bad_config, "workers is 0: a cluster needs at least 1");
  if (const auto profile = find_profile(options.device.numerics); !profile)
    return fail(profile);
  if (const auto config = load_config(options.device.model); !config)
    return fail(config);
  if (const auto files = checkpoint::open(options.device.model); !files)
    return fail(files);
  local_cluster_options local;
  local.restart_workers = restart_workers;
  local.scheduler_arguments = scheduler_arguments(options.scheduler);
  for (std::uint32_t number = 1; number <= options.workers; ++number)
    local.worker_arguments.push_back(worker_arguments(options, number));
  return local_cluster::start(local);
}

} // namespace rollcast::cli
