#include "cluster/telemetry/http_responder.hpp"

#include <httplib.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace rollcast {

namespace {

/// A request that has arrived whole, and the answer to it, as cpp-httplib wants to see a peer.
class memory_stream final : public httplib::Stream {
public:
  explicit memory_stream(std::string_view request) : request_(request) {}

  bool is_readable() const override { return at_ < request_.size(); }
  bool is_writable() const override { return true; }
  ssize_t read(char* to, std::size_t size) override {
    const auto n = std::min(size, request_.size() - at_);
    std::memcpy(to, request_.data() + at_, n);
    at_ += n;
    return static_cast<ssize_t>(n);
  }
  ssize_t write(const char* from, std::size_t size) override {
    answer.append(from, size);
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return INVALID_SOCKET; }

  std::string answer;

private:
  std::string_view request_;
  std::size_t at_ = 0;
};

/// cpp-httplib's parser, router and formatter without its threads and sockets: its pool gives a
/// thread to a connection until the client has sent its request, so that a few clients that send
/// nothing would hold up the probes.
class router final : public httplib::Server {
public:
  explicit router(http_routes routes) {
    // Before routing, so that a body is never waited for and a bad method has one answer.
    set_pre_routing_handler([](const httplib::Request& request, httplib::Response& response) {
      if (request.method == "GET" || request.method == "HEAD")
        return HandlerResponse::Unhandled;
      response.status = 405;
      response.set_header("Allow", "GET, HEAD");
      response.set_content("only GET and HEAD are served here\n", "text/plain");
      return HandlerResponse::Handled;
    });
    Get("/metrics", [get = std::move(routes.metrics)](const auto&, httplib::Response& response) {
      response.set_content(get(), "text/plain; version=0.0.4; charset=utf-8");
    });
    probe("/healthz", std::move(routes.healthz));
    probe("/readyz", std::move(routes.readyz));
    set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (response.status == 404)
        response.set_content("not here; try /metrics, /healthz or /readyz\n", "text/plain");
    });
  }

  /// Returns the answer to a request whose head is complete.
  std::string answer(std::string_view request) {
    memory_stream stream{request};
    bool closed = false;
    process_request(stream, true, closed, nullptr);
    return std::move(stream.answer);
  }

private:
  void probe(const char* path, std::function<health()> ask) {
    Get(path, [ask = std::move(ask)](const auto&, httplib::Response& response) {
      const auto said = ask();
      response.status = said.ok ? 200 : 503;
      response.set_content(said.line + "\n", "text/plain; charset=utf-8");
    });
  }
};

} // namespace

struct http_responder::state {
  explicit state(http_routes routes) : router_(std::move(routes)) {}
  router router_;
};

http_responder::http_responder(http_routes routes)
  : state_(std::make_unique<state>(std::move(routes))) {}

http_responder::~http_responder() = default;

std::string http_responder::answer(std::string_view head) const {
  return state_->router_.answer(head);
}

} // namespace rollcast
