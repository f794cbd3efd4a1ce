#pragma once

#include "actors/node.hpp"
#include "cluster/telemetry/http_server.hpp"

#include <caf/all.hpp>
#include <caf/io/all.hpp>

/// What both kinds of node are built on. Private to scheduler_node.cpp and worker_node.cpp.
namespace rollcast {

/// CAF with our messages, the network module, heartbeats (both settings: one alone is ignored) and
/// no more threads than a control plane needs.
class node_config : public caf::actor_system_config {
public:
  explicit node_config(const liveness_options& liveness);
};

/// An actor system that ends its actors before itself; CAF waits for them for ever.
class node_system {
public:
  explicit node_system(const liveness_options& liveness) : config_(liveness), system_(config_) {}
  ~node_system();

  caf::actor_system& get() noexcept { return system_; }
  /// Ends `actor` with the system.
  template <class Handle>
  void keep(const Handle& actor) {
    actors_.push_back(caf::actor_cast<caf::actor>(actor));
  }
  /// Ends the actors now; waits at most `span` for them. @returns false if one still runs.
  bool end_actors(std::chrono::milliseconds span);

private:
  node_config config_;
  caf::actor_system system_;
  std::vector<caf::actor> actors_;
};

/// Starts the HTTP server unless `port` says none.
result<std::unique_ptr<http_server>>
serve_http(const std::string& address, std::optional<std::uint16_t> port, http_routes routes);

/// True if an event loop has turned within `span`.
bool is_alive(const std::atomic<std::uint64_t>& beat_ns, std::chrono::seconds span) noexcept;

} // namespace rollcast
