#include "actors/node_system.hpp"

#include <cstdlib>

namespace rollcast {

node_config::node_config(const liveness_options& liveness) {
  load<caf::io::middleman>();
  add_message_types<caf::id_block::rollcast>();
  set("middleman.heartbeat-interval", caf::timespan{liveness.heartbeat_interval_ms});
  set("middleman.connection-timeout", caf::timespan{liveness.heartbeat_timeout_ms});
  // One is with the decode worker while it steps, for a minute if the model is that large.
  set("scheduler.max-threads", 3);
  set("scheduler.policy", caf::atom("sharing")); // halves the latency of a remote request
}

node_system::~node_system() {
  end_actors(std::chrono::seconds{10});
}

bool node_system::end_actors(std::chrono::milliseconds span) {
  caf::scoped_actor self{system_};
  std::size_t alive = actors_.size();
  for (const auto& actor : actors_) {
    self->monitor(actor);
    self->send_exit(actor, caf::exit_reason::user_shutdown);
  }
  bool in_time = true;
  while (alive > 0 && in_time)
    self->receive([&](const caf::down_msg&) { --alive; },
                  caf::after(span) >> [&] { in_time = false; });
  actors_.clear();
  return alive == 0;
}

result<std::unique_ptr<http_server>>
serve_http(const std::string& address, std::optional<std::uint16_t> port, http_routes routes) {
  if (!port)
    return std::unique_ptr<http_server>{};
  http_server_options options;
  options.address = address;
  options.port = *port;
  return http_server::start(std::move(options), std::move(routes));
}

bool is_alive(const std::atomic<std::uint64_t>& beat_ns, std::chrono::seconds span) noexcept {
  const auto limit = static_cast<std::uint64_t>(std::chrono::nanoseconds{span}.count());
  return steady_ns() < beat_ns.load(std::memory_order_relaxed) + limit;
}

} // namespace rollcast
