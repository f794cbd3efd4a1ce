#pragma once

#include "actors/node.hpp"
#include "cluster/telemetry/http_server.hpp"

#include <caf/all.hpp>
#include <caf/io/all.hpp>
#include <caf/openssl/all.hpp>

/// What both kinds of node are built on. Private to scheduler_node.cpp and worker_node.cpp.
namespace rollcast {

/// CAF with our messages, the network module, heartbeats (both settings: one alone is ignored) and
/// no more threads than a control plane needs. With `tls` also the module that speaks it.
class node_config : public caf::actor_system_config {
public:
  /// Nodes of different versions do not connect: their messages may differ.
  node_config(const liveness_options& liveness, const tls_files* tls, const std::string& version);
};

/// An actor system that ends its actors before itself; CAF waits for them for ever.
class node_system {
public:
  /// A null `tls` is a system without it, an empty `version` that of this program.
  node_system(const liveness_options& liveness, std::unique_ptr<tls_files> tls,
              const std::string& version = {})
    : tls_(std::move(tls)), config_(liveness, tls_.get(), version), system_(config_) {}
  ~node_system();

  caf::actor_system& get() noexcept { return system_; }
  bool has_tls() const noexcept { return tls_ != nullptr; }
  /// Takes over renewed TLS files for the connections that come after it. Cheap if there are none.
  void look_at_tls_files();
  /// Ends `actor` with the system.
  template <class Handle>
  void keep(const Handle& actor) {
    actors_.push_back(caf::actor_cast<caf::actor>(actor));
  }
  /// Ends the actors now; waits at most `span` for them. @returns false if one still runs.
  bool end_actors(std::chrono::milliseconds span);

private:
  std::unique_ptr<tls_files> tls_; ///< First: CAF opens its names at every handshake.
  node_config config_;
  caf::actor_system system_;
  std::vector<caf::actor> actors_;
};

/// Reads the TLS files; null if there are none.
result<std::unique_ptr<tls_files>> open_tls(const tls_options& options);

/// Starts the HTTP server unless `port` says none.
result<std::unique_ptr<http_server>>
serve_http(const std::string& address, std::optional<std::uint16_t> port, http_routes routes);

/// True if an event loop has turned within `span`.
bool is_alive(const std::atomic<std::uint64_t>& beat_ns, std::chrono::seconds span) noexcept;

} // namespace rollcast
