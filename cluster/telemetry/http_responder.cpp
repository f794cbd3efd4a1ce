#include "cluster/telemetry/http_responder.hpp"

#include <httplib.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
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

/// What is between `<tag>` and `</tag>`, as a content security policy names it: by its hash.
std::string source_of(std::string_view page, const std::string& tag) {
  const auto open = page.find("<" + tag + ">");
  const auto close = page.find("</" + tag + ">");
  if (open == std::string_view::npos || close == std::string_view::npos)
    return "'none'";
  const auto begin = open + tag.size() + 2;
  const auto inside = page.substr(begin, close - begin);
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(inside.data()), inside.size(), digest.data());
  std::array<unsigned char, 4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1> text{};
  EVP_EncodeBlock(text.data(), digest.data(), digest.size());
  return std::string{"'sha256-"} + reinterpret_cast<const char*>(text.data()) + "'";
}

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
    if (routes.status)
      Get("/status.json", [get = std::move(routes.status)](const auto&, auto& response) {
        response.set_header("Cache-Control", "no-store");
        response.set_content(get(), "application/json");
      });
    if (!routes.page.empty())
      serve_page(routes.page);
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
  /// The page may run what is in it and ask this server, and nothing else, whatever a name that it
  /// shows looks like.
  void serve_page(std::string_view page) {
    const auto policy = "default-src 'none'; connect-src 'self'; script-src "
                        + source_of(page, "script") + "; style-src " + source_of(page, "style")
                        + "; img-src data:; base-uri 'none'; form-action 'none'; "
                          "frame-ancestors 'none'";
    Get("/", [page, policy](const auto&, httplib::Response& response) {
      response.set_header("Content-Security-Policy", policy);
      response.set_header("X-Content-Type-Options", "nosniff");
      response.set_header("Referrer-Policy", "no-referrer");
      response.set_header("Cache-Control", "no-store");
      response.set_content(page.data(), page.size(), "text/html; charset=utf-8");
    });
  }

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
