#include "cluster/drafts/draft_server.hpp"

#include "cli/announce.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/role.hpp"
#include "cli/security.hpp"
#include "cli/stop_signal.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "cluster/telemetry/http_server.hpp"
#include "cluster/telemetry/metrics.hpp"

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

namespace rollcast::cli {

namespace {

void show_figures(const draft_server::counters& counts, const draft_server_metrics& m) {
  m.groups.set(static_cast<double>(counts.groups));
  m.bytes.set(static_cast<double>(counts.bytes));
  m.followers.set(static_cast<double>(counts.followers));
  m.relayed_tokens.raise_to(counts.relayed_tokens);
  m.gaps_repaired.raise_to(counts.gaps_repaired);
  m.frames_dropped.malformed.raise_to(counts.dropped_malformed);
  m.frames_dropped.full.raise_to(counts.dropped_full);
  m.frames_dropped.conflict.raise_to(counts.dropped_conflict);
}

http_routes routes_of(const draft_server& server, const draft_server_metrics& metrics) {
  http_routes routes;
  routes.metrics = [&] {
    show_figures(server.counts(), metrics);
    return metrics.registry.text();
  };
  routes.healthz = [&]() -> health {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    const auto turned = std::chrono::nanoseconds{server.counts().turned_ns.load()};
    if (now - turned < std::chrono::seconds{10})
      return {true, "ok"};
    return {false, "the draft server has not turned for 10 s"};
  };
  routes.readyz = []() -> health {
    return stop_requested() ? health{false, "stopping"} : health{true, "listening"};
  };
  return routes;
}

} // namespace

int run_draft_server(const draft_server_command_options& options) {
  catch_stop_signals();
  raise_file_limit();
  int announce_fd = options.announce_fd;
  draft_server_options what;
  what.listen = options.listen;
  auto keys = data_keys(options.data_key);
  if (!keys)
    return fail_start(keys.error(), announce_fd);
  what.keys = std::move(*keys);
  what.board.bytes_max = std::uint64_t{options.memory_mib} << 20;
  const auto server = draft_server::open(what);
  if (!server)
    return fail_start(server.error(), announce_fd);
  const draft_server_metrics metrics{ROLLCAST_VERSION};
  std::unique_ptr<http_server> http;
  if (!options.no_metrics) {
    auto served = http_server::start({options.metrics_address, options.metrics_port},
                                     routes_of(**server, metrics));
    if (!served)
      return fail_start(served.error(), announce_fd);
    http = std::move(*served);
  }
  if (announce_fd < 0) {
    std::printf("rollcast: draft server for workers at %s\n", (*server)->endpoint().c_str());
    std::fflush(stdout);
  }
  announce(std::exchange(announce_fd, -1),
           {{"drafts", (*server)->endpoint()}, {"metrics_port", http ? http->port() : 0}});
  while (!stop_requested())
    std::this_thread::sleep_for(std::chrono::milliseconds{50});
  return exit_done;
}

} // namespace rollcast::cli
