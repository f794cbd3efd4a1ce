#pragma once

#include "engine/base/error.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace rollcast {

/// The answer of a probe: 200 or 503 with one line that says why.
struct health {
  bool ok = false;
  std::string line; ///< Without a newline.
};

/// What the server asks its process. Called on the server's own thread, one at a time, so they must
/// be thread-safe towards the rest of the process and must not block.
struct http_routes {
  std::function<std::string()> metrics;     ///< GET /metrics: `metrics_registry::text`.
  std::function<health()> healthz;          ///< GET /healthz: the event loop makes progress.
  std::function<health()> readyz;           ///< GET /readyz: this process may be given work.
  std::function<std::string()> status = {}; ///< GET /status.json; none: 404.
  std::string_view page = {}; ///< GET /: one HTML file with its script and style inside; "": 404.
};

/// Where to listen, and bounds that keep a stranger from tying the server up.
struct http_server_options {
  std::string address = "127.0.0.1";              ///< Numeric IPv4 or IPv6 address.
  std::uint16_t port = 0;                         ///< 0 takes any free port; `port()` tells which.
  std::size_t connections_max = 64;               ///< One more drops the connection that is oldest.
  std::size_t request_bytes_max = 8192;           ///< Request line and headers; more is 431.
  std::chrono::milliseconds request_ms_max{2000}; ///< For a client to send its request.
  std::chrono::milliseconds answer_ms_max{5000};  ///< For a client to take the answer.
};

/// Serves GET and HEAD of /metrics, /healthz, /readyz and what else `http_routes` has over
/// HTTP/1.1, one request a connection. Any other path is 404, any other method 405. One thread of
/// its own and no blocking read or write: a slow client costs its own connection, nothing else.
class http_server {
public:
  /// Binds, listens and starts the thread. Fails with `address_in_use` (detail: address and port)
  /// or `bad_config` (not a numeric address, not an address of this machine, no permission).
  static result<std::unique_ptr<http_server>> start(http_server_options options,
                                                    http_routes routes);

  /// Stops.
  ~http_server();
  http_server(const http_server&) = delete;
  http_server& operator=(const http_server&) = delete;

  /// The port that is bound; stays known after `stop`.
  std::uint16_t port() const noexcept;

  /// Closes the listener and all connections and joins the thread, well within a second as long as
  /// no route blocks. Repeated calls do nothing. Not from within a route.
  void stop() noexcept;

private:
  class loop;
  explicit http_server(std::unique_ptr<loop> l) noexcept;
  std::uint16_t port_;
  std::unique_ptr<loop> loop_;
};

} // namespace rollcast
