#pragma once

#include "cluster/telemetry/http_server.hpp"

#include <memory>
#include <string>
#include <string_view>

namespace rollcast {

/// The HTTP half of `http_server`, without sockets: one request in, one answer out. Only its source
/// knows cpp-httplib. Not thread-safe.
class http_responder {
public:
  explicit http_responder(http_routes routes);
  ~http_responder();
  http_responder(const http_responder&) = delete;
  http_responder& operator=(const http_responder&) = delete;

  /// Returns the bytes of the answer to a request. `head` is its request line and headers with the
  /// empty line that ends them; a body is not wanted. "" means that the peer is not worth one.
  std::string answer(std::string_view head) const;

private:
  struct state;
  std::unique_ptr<state> state_;
};

} // namespace rollcast
