#include "actors/node.hpp"
#include "cli/announce.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/role.hpp"
#include "cli/security.hpp"
#include "cli/stop_signal.hpp"
#include "cluster/security/doorkeeper.hpp"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <utility>

namespace rollcast::cli {

liveness_options liveness_of(std::uint32_t lost_after_ms) {
  liveness_options liveness;
  // Silence is looked for at every interval, so it is seen an interval after the timeout at the
  // latest.
  const auto interval = std::max(1u, lost_after_ms / 6);
  liveness.heartbeat_interval_ms = std::chrono::milliseconds{interval};
  liveness.heartbeat_timeout_ms = std::chrono::milliseconds{lost_after_ms - interval};
  return liveness;
}

bool is_wildcard(std::string_view address) noexcept {
  return address.empty() || address == "*" || address == "0.0.0.0" || address == "::"
         || address == "[::]";
}

std::string endpoint_at(const std::string& address, std::uint16_t port) {
  return "tcp://" + (is_wildcard(address) ? "*" : address) + ":"
         + (port == 0 ? "*" : std::to_string(port));
}

int fail_start(const error& e, int announce_fd) {
  if (announce_fd < 0)
    return refuse(e);
  announce(announce_fd, announcement_of(e)); // the parent tells the user, in one line
  return exit_code_of(e);
}

namespace {

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// Puts the keys and the limits where they belong.
result<void> guard(scheduler_node_options& node, const scheduler_options& options) {
  const auto& door = options.door;
  node.frontend.client = door.client;
  node.frontend.connections_max = door.connections_max;
  node.frontend.connections_per_address_max = door.connections_per_address_max;
  node.tls = options.keys.tls;
  auto data = data_keys(options.keys.data_key);
  if (!data)
    return fail(data);
  node.weights.keys = *data;
  if (door.secret.empty())
    return {};
  auto keys = curve_policy::open(
    {door.secret, door.clients, door.client, std::chrono::seconds{door.grace_s}});
  if (!keys)
    return fail(keys);
  node.frontend.keys = *keys;
  return {};
}

} // namespace

int run_scheduler(const scheduler_options& options) {
  catch_stop_signals();
  const stop_watch stop;
  raise_file_limit();
  scheduler_node_options node;
  if (const auto ok = guard(node, options); !ok)
    return fail_start(ok.error(), options.announce_fd);
  node.frontend.bind = options.listen;
  node.cluster_address = options.control_address;
  node.cluster_port = options.control_port;
  node.weights.bind = endpoint_at(options.control_address, options.weights_port);
  node.weights.advertise_host = options.weights_advertise;
  if (options.weights_advertise.empty() && is_wildcard(options.control_address))
    node.weights.advertise_host = host_name();
  node.weights.offers_max = 64; // workers that come back at the same time
  node.metrics_address = options.metrics_address;
  node.metrics_port.reset();
  if (!options.no_metrics)
    node.metrics_port = options.metrics_port;
  node.liveness = liveness_of(options.lost_after_ms);
  node.journal.path = options.journal.string();
  node.journal.bytes_max = std::uint64_t{options.journal_max_mib} << 20;
  node.scheduler.default_policy = options.policy;
  node.scheduler.chunk_tokens = options.chunk_tokens;
  node.scheduler.batches_wait = options.batches == "wait";
  node.scheduler.measured_prices = options.kv_prices == "measured";
  node.scheduler.weight_deadlines.receiving = std::chrono::seconds{options.weights_receive_s};
  node.drain_ms_max = std::chrono::milliseconds{options.drain_ms};
  int announce_fd = options.announce_fd;
  const auto ended = rollcast::run_scheduler(node, stop.token(), [&](const scheduler_ports& ports) {
    const int metrics = ports.metrics_port.value_or(0);
    if (announce_fd < 0) {
      std::printf("rollcast: controllers connect to %s, workers to port %d\n",
                  ports.frontend_endpoint.c_str(), ports.cluster_port);
      std::fflush(stdout);
    }
    announce(std::exchange(announce_fd, -1), {{"frontend", ports.frontend_endpoint},
                                              {"control_address", options.control_address},
                                              {"control_port", ports.cluster_port},
                                              {"metrics_address", options.metrics_address},
                                              {"metrics_port", metrics}});
  });
  return ended ? exit_done : fail_start(ended.error(), announce_fd);
}

} // namespace rollcast::cli
