#include "actors/node.hpp"
#include "cli/announce.hpp"
#include "cli/commands.hpp"
#include "cli/drafting.hpp"
#include "cli/exit_code.hpp"
#include "cli/role.hpp"
#include "cli/security.hpp"
#include "cli/stop_signal.hpp"
#include "cluster/security/doorkeeper.hpp"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <utility>

namespace rollcast::cli {

namespace {

/// What the options say of the worker. `device` are theirs, with the drafts settled.
worker_node_options node_of(const worker_options& options, const device_options& device,
                            const std::shared_ptr<curve_policy>& keys) {
  worker_node_options node;
  node.name = options.name.empty() ? "worker-" + std::to_string(::getpid()) : options.name;
  node.model = std::filesystem::absolute(device.model).filename().string();
  node.scheduler_host = options.scheduler_host;
  node.scheduler_port = options.scheduler_port;
  node.kv.bind = endpoint_at(options.data_address, options.data_port);
  node.kv.advertise_host = options.data_advertise;
  node.weights.bind = endpoint_at(options.data_address, options.weights_port);
  node.weights.advertise_host = options.data_advertise;
  node.kv.keys = keys;
  node.weights.keys = keys;
  node.draft_keys = keys;
  node.tls = options.keys.tls;
  node.weight_threads = options.weight_threads;
  node.metrics_address = options.metrics_address;
  if (!options.no_metrics)
    node.metrics_port = options.metrics_port;
  node.liveness = liveness_of(options.lost_after_ms);
  node.engine = limits_of(device);
  node.spill = spill_of(device);
  node.speculation.how = *find_speculation(device.speculate);
  node.speculation.tree_width = device.draft_width;
  if (device.draft_server != "none")
    node.draft_server = device.draft_server;
  node.weight_epoch = 1;
  node.drain_ms_max = std::chrono::milliseconds{options.drain_ms};
  node.give_up_ms = std::chrono::seconds{options.give_up_s};
  node.stuck_after_s = std::chrono::seconds{options.stuck_after_s};
  return node;
}

} // namespace

int run_worker(const worker_options& options) {
  catch_stop_signals();
  const stop_watch stop;
  int announce_fd = options.announce_fd;
  if (options.data_advertise.empty() && is_wildcard(options.data_address))
    return fail_start({errc::bad_config,
                       "data-address " + options.data_address
                         + " is every address, so peers cannot be told where to dial: give "
                           "--data-advertise HOST too",
                       {}},
                      announce_fd);
  raise_file_limit();
  const auto keys = data_keys(options.keys.data_key);
  if (!keys)
    return fail_start(keys.error(), announce_fd);
  std::optional<leave_on_stop> loading{std::in_place};
  auto what = options.device;
  if (const auto settled = settle_drafts(what); !settled)
    return fail_start(settled.error(), announce_fd);
  const auto pool = std::make_shared<thread_pool>(threads_of(what));
  auto device = open_device(what, pool);
  if (!device)
    return fail_start(device.error(), announce_fd);
  auto drafter = open_drafter(what, **device, pool);
  loading.reset();
  if (!drafter)
    return fail_start(drafter.error(), announce_fd);
  if (*drafter)
    *device = with_draft(std::move(*device), **drafter, what);
  const auto collectives = collectives_of(options.device, *keys != nullptr);
  if (!collectives)
    return fail_start(collectives.error(), announce_fd);
  auto node = node_of(options, what, *keys);
  node.collectives = *collectives;
  node.draft_model = std::move(*drafter);
  // Nothing is lost: the scheduler has the edges, or has them computed again.
  node.abandon = [](const result<void>& ended) {
    ::_exit(ended ? exit_done : refuse(ended.error()));
  };
  const auto ended =
    rollcast::run_worker(node, std::move(*device), stop.token(), [&](const worker_ports& ports) {
      if (announce_fd < 0) {
        std::printf("rollcast: worker %s serves KV at %s\n", node.name.c_str(),
                    ports.data_endpoint.c_str());
        std::fflush(stdout);
      }
      announce(std::exchange(announce_fd, -1),
               {{"data", ports.data_endpoint}, {"metrics_port", ports.metrics_port.value_or(0)}});
    });
  return ended ? exit_done : fail_start(ended.error(), announce_fd);
}

} // namespace rollcast::cli
