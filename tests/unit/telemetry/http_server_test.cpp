// Goal: a scraper and a kubelet get their answers, whatever other clients do.
// Method: the real server on a free loopback port; well-behaved clients by cpp-httplib, badly
// behaved ones by raw sockets.

#include "cluster/telemetry/http_server.hpp"
#include "cluster/telemetry/metrics.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace rollcast {
namespace {

using std::chrono::milliseconds;

class http_server_test : public testing::Test {
protected:
  http_routes routes() {
    return {[this] { return metrics.registry.text(); },
            [this] {
              return health{alive, alive ? "ok" : "no progress for 3.2 s"};
            },
            [this] {
              return health{ready, ready ? "ready" : "no worker at epoch 7"};
            }};
  }

  std::unique_ptr<http_server> serve(http_server_options options = {}) {
    auto started = http_server::start(options, routes());
    EXPECT_TRUE(started) << started.error().detail;
    return std::move(*started);
  }

  worker_metrics metrics{"0.1.0", "cpu-f32-v1"};
  std::atomic<bool> alive{true};
  std::atomic<bool> ready{false};
};

httplib::Client client_of(const http_server& server) {
  httplib::Client client{"127.0.0.1", server.port()};
  client.set_read_timeout(2, 0);
  return client;
}

/// A raw connection, for what no library would send.
class raw_peer {
public:
  explicit raw_peer(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
    const timeval limit{5, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  raw_peer(const raw_peer&) = delete;
  raw_peer& operator=(const raw_peer&) = delete;
  ~raw_peer() { ::close(fd_); }

  /// @returns false once the server has reset the connection.
  bool send(std::string_view bytes) const {
    return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) > 0;
  }
  /// Returns all that comes until the server closes.
  std::string rest() const {
    std::string all;
    char piece[4096];
    for (ssize_t n; (n = ::recv(fd_, piece, sizeof piece, 0)) > 0;)
      all.append(piece, static_cast<std::size_t>(n));
    return all;
  }

private:
  int fd_;
};

TEST_F(http_server_test, serves_metrics_as_prometheus_text) {
  const auto server = serve();
  metrics.generated_tokens.add(42);
  const auto got = client_of(*server).Get("/metrics");
  ASSERT_TRUE(got);
  EXPECT_EQ(got->status, 200);
  EXPECT_EQ(got->get_header_value("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_NE(got->body.find("\nrollcast_generated_tokens_total 42\n"), std::string::npos);
}

TEST_F(http_server_test, probes_answer_200_or_503_with_the_reason) {
  const auto server = serve();
  auto client = client_of(*server);
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  const auto not_ready = client.Get("/readyz");
  EXPECT_EQ(not_ready->status, 503);
  EXPECT_EQ(not_ready->body, "no worker at epoch 7\n");
  ready = true;
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  alive = false;
  EXPECT_EQ(client.Get("/healthz")->status, 503);
}

TEST_F(http_server_test, refuses_other_paths_and_methods) {
  const auto server = serve();
  auto client = client_of(*server);
  EXPECT_EQ(client.Get("/")->status, 404);
  EXPECT_EQ(client.Get("/metrics/../etc/passwd")->status, 404);
  EXPECT_EQ(client.Post("/metrics", std::string(100'000, 'x'), "text/plain")->status, 405);
  EXPECT_EQ(client.Delete("/healthz")->status, 405);
  const auto head = client.Head("/healthz");
  EXPECT_EQ(head->status, 200);
  EXPECT_EQ(head->body, "");
}

TEST_F(http_server_test, bounds_a_request_and_survives_garbage) {
  const auto server = serve();
  raw_peer large{server->port()};
  large.send("GET /metrics HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n");
  EXPECT_TRUE(large.rest().starts_with("HTTP/1.1 431 ")) << "a header of 20 KB";
  raw_peer garbage{server->port()};
  garbage.send(std::string_view{"\x16\x03\x01\0\xff\0\r\n\r\n", 10});
  EXPECT_EQ(garbage.rest().find(" 200 "), std::string::npos);
  raw_peer half{server->port()};
  half.send("GET /metr");
  EXPECT_EQ(client_of(*server).Get("/healthz")->status, 200);
}

TEST_F(http_server_test, answers_a_request_that_comes_byte_by_byte) {
  const auto server = serve();
  raw_peer peer{server->port()};
  for (const char c : std::string_view{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"}) {
    peer.send({&c, 1});
    std::this_thread::sleep_for(milliseconds{2});
  }
  EXPECT_TRUE(peer.rest().starts_with("HTTP/1.1 200 OK\r\n"));
}

TEST_F(http_server_test, many_scrapes_at_once_are_all_whole) {
  const auto server = serve();
  std::atomic<int> whole{0};
  std::vector<std::thread> scrapers;
  for (int t = 0; t < 16; ++t)
    scrapers.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        metrics.step_seconds.observe(0.01);
        const auto got = client_of(*server).Get("/metrics");
        whole += got && got->status == 200 && got->body.ends_with('\n');
      }
    });
  for (auto& thread : scrapers)
    thread.join();
  EXPECT_EQ(whole, 320);
}

TEST_F(http_server_test, slow_clients_do_not_hold_up_the_probes) {
  const auto server = serve({.connections_max = 8, .request_ms_max = milliseconds{60'000}});
  std::vector<std::unique_ptr<raw_peer>> slow;
  for (int i = 0; i < 40; ++i) { // more than fit
    slow.push_back(std::make_unique<raw_peer>(server->port()));
    slow.back()->send("GET /metrics HTTP/1.1\r\nX: ");
  }
  const auto start = std::chrono::steady_clock::now();
  const auto got = client_of(*server).Get("/healthz");
  ASSERT_TRUE(got);
  EXPECT_EQ(got->status, 200);
  EXPECT_EQ(slow.front()->rest(), "") << "the oldest made room";
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds{500});
}

TEST_F(http_server_test, a_peer_that_still_sends_is_not_reset_before_it_has_the_answer) {
  const auto server = serve();
  raw_peer peer{server->port()};
  peer.send("POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n");
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(peer.send(std::string(1'000, 'x'))) << i;
    std::this_thread::sleep_for(milliseconds{20});
  }
  EXPECT_TRUE(peer.rest().starts_with("HTTP/1.1 405 "));
}

TEST_F(http_server_test, a_client_that_never_finishes_its_request_is_dropped) {
  const auto server = serve({.request_ms_max = milliseconds{50}});
  raw_peer slow{server->port()};
  slow.send("GET /metrics HTTP/1.1\r\n");
  EXPECT_EQ(slow.rest(), "") << "closed without an answer, not timed out here";
}

TEST_F(http_server_test, a_port_in_use_is_named) {
  const auto server = serve();
  const auto second = http_server::start({.port = server->port()}, routes());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, errc::address_in_use);
  EXPECT_NE(second.error().detail.find("127.0.0.1:" + std::to_string(server->port())),
            std::string::npos)
    << second.error().detail;
}

TEST_F(http_server_test, an_address_that_cannot_be_bound_is_bad_config) {
  for (const auto* address : {"localhost", "not an address", "", "203.0.113.7"}) {
    const auto started = http_server::start({.address = address}, routes());
    ASSERT_FALSE(started) << address;
    EXPECT_EQ(started.error().code, errc::bad_config) << started.error().detail;
  }
}

TEST_F(http_server_test, stops_at_once_and_frees_its_port) {
  auto server = serve();
  const auto port = server->port();
  raw_peer idle{port};
  idle.send("GET /");
  const auto start = std::chrono::steady_clock::now();
  server->stop();
  server->stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds{1'000});
  EXPECT_TRUE(http_server::start({.port = port}, routes()));
}

} // namespace
} // namespace rollcast
