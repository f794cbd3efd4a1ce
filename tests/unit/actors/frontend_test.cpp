// Goal: a controller that does not read costs the scheduler no more than its bound in bytes, is
// given up, and gets what is pushed once it reads; so it is with what it did wrong; requests are
// bounded in bytes before they are looked at.
// Method: a frontend with a real socket, no scheduler behind it; the test pushes and counts.

#include "actors/frontend.hpp"
#include "cluster/wire/codec.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <sstream>

namespace rollcast {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

class frontend_with_bounds : public testing::Test {
protected:
  void open(frontend_options options) {
    options.bind = "tcp://127.0.0.1:*";
    metrics_ = std::make_shared<scheduler_metrics>("test");
    door_ = frontend::open(options, metrics_).value();
    door_->start({[this](controller_request r) {
                    {
                      const std::scoped_lock lock{mutex_};
                      heard_.push_back(std::move(r));
                    }
                    held_.wait(true);
                  },
                  [this](const std::string&) { ++gone_; }});
    client_.set(zmq::sockopt::linger, 0);
    client_.set(zmq::sockopt::rcvhwm, 1);
    client_.set(zmq::sockopt::rcvbuf, 65'536);
    client_.connect(door_->endpoint());
  }
  void TearDown() override {
    hold(false);
    door_->stop();
  }

  /// Keeps the door's thread in the next request that it hears, and lets it go.
  void hold(bool yes) {
    held_ = yes;
    held_.notify_all();
  }

  std::string ask(std::uint64_t id, const wire::request& body) { return ask(id, body, client_); }
  std::string ask(std::uint64_t id, const wire::request& body, zmq::socket_t& from) {
    const auto before = heard();
    from.send(zmq::buffer(wire::encode(id, body)));
    EXPECT_TRUE(soon([&] { return heard() > before; }));
    const std::scoped_lock lock{mutex_};
    return heard_.back().peer;
  }
  std::size_t heard() {
    const std::scoped_lock lock{mutex_};
    return heard_.size();
  }
  /// The next message for the client, or nothing within the time.
  std::optional<wire::event_envelope> receive(int wait_ms = 2'000) {
    client_.set(zmq::sockopt::rcvtimeo, wait_ms);
    zmq::message_t body;
    if (!client_.recv(body))
      return std::nullopt;
    return wire::decode_event({body.data<std::byte>(), body.size()}).value();
  }
  template <class Condition>
  static bool soon(Condition condition) {
    for (int i = 0; i < 6'000; ++i, ::usleep(10'000)) // a minute: other tests run beside it
      if (condition())
        return true;
    return false;
  }
  /// Until the answer to request 1 has come; `came` counts what came before it.
  void receive_up_to_answer(std::uint64_t& came) {
    for (;;) {
      const auto got = receive();
      ASSERT_TRUE(got) << "the answer never came, after " << came;
      if (got->request_id == 1)
        break;
      ++came;
    }
  }
  static wire::event_envelope push(std::uint64_t sequence, std::size_t bytes = mib) {
    wire::response_ready ready;
    ready.batch_key = "k";
    ready.sequence = sequence;
    ready.numerics_profile = "p";
    ready.token_ids.resize(bytes / 8, 300'000'000);
    ready.logprobs.resize(bytes / 8, -1.f);
    ready.weight_versions = {{1, 0, static_cast<std::uint32_t>(bytes / 8)}};
    return {0, std::move(ready)};
  }

  std::shared_ptr<scheduler_metrics> metrics_;
  std::shared_ptr<frontend> door_;
  std::mutex mutex_;
  std::vector<controller_request> heard_; ///< Guarded by `mutex_`.
  std::atomic<int> gone_{0};
  std::atomic<bool> held_{false};
  zmq::context_t context_{1};
  zmq::socket_t client_{context_, zmq::socket_type::dealer};
};

TEST_F(frontend_with_bounds, keeps_no_more_for_a_peer_that_does_not_read_than_its_bytes) {
  frontend_options options;
  options.out.bytes_of_peer = 32 * mib;
  open(options);
  const auto peer = ask(1, wire::get_status{});
  for (std::uint64_t i = 1; i <= 200; ++i)
    door_->send(peer, push(i));
  door_->send(peer, {1, wire::request_done{}}); // gets through, behind what is there
  EXPECT_TRUE(soon([&] { return gone_ > 0; }));
  std::uint64_t came = 0;
  ASSERT_NO_FATAL_FAILURE(receive_up_to_answer(came));
  EXPECT_GE(came, 30u);
  EXPECT_LE(came, 48u) << "beyond what the sockets' own buffers take";
  door_->send(peer, push(201));
  const auto next = receive();
  ASSERT_TRUE(next) << "it reads, so it is sent to";
  EXPECT_EQ(std::get<wire::response_ready>(next->body).sequence, 201u);
}

TEST_F(frontend_with_bounds, keeps_few_refusals_for_a_peer_that_does_not_read_and_tells_nobody) {
  frontend_options options;
  options.refusals.bytes_of_peer = 16'384;
  options.messages_per_peer_max = 1'000'000;
  open(options);
  const std::uint64_t bad = 100'000;
  for (std::uint64_t i = 0; i < bad; ++i)
    client_.send(zmq::str_buffer("x"));
  ASSERT_TRUE(soon([&] { return metrics_->frames_rejected.malformed.value() == bad; }));
  const auto peer = ask(1, wire::get_status{});
  door_->send(peer, {1, wire::request_done{}});
  std::uint64_t came = 0;
  ASSERT_NO_FATAL_FAILURE(receive_up_to_answer(came));
  EXPECT_GE(came, 20u);
  EXPECT_LE(came, bad / 2) << "beyond what the sockets' own buffers take";
  EXPECT_EQ(gone_, 0) << "the scheduler never heard of it";
  client_.send(zmq::str_buffer("x"));
  EXPECT_TRUE(receive()) << "it reads, so it is told";
}

TEST_F(frontend_with_bounds, says_once_that_a_peer_has_gone_however_much_was_for_it) {
  frontend_options options;
  options.messages_per_peer_max = 2;
  open(options);
  const auto peer = ask(1, wire::get_status{});
  door_->send(peer, push(1, 16 * mib)); // its socket takes no more than a part of this
  ::usleep(200'000);
  hold(true); // all in one turn
  (void)ask(2, wire::get_status{});
  for (std::uint64_t i = 0; i < 2'000; ++i)
    door_->send(peer, {0, wire::request_done{}});
  hold(false);
  EXPECT_TRUE(soon([&] { return gone_ > 0; }));
  ::usleep(200'000);
  EXPECT_EQ(gone_, 1) << "of about 2000 that were dropped";
}

TEST_F(frontend_with_bounds, fills_no_log_with_peers_that_do_not_read) {
  const auto before = spdlog::default_logger();
  std::ostringstream log;
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
    "door", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  frontend_options options;
  options.out.bytes_of_peer = mib;
  open(options);
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t id = 1; id <= 5; ++id) {
    zmq::socket_t brief{context_, zmq::socket_type::dealer};
    brief.set(zmq::sockopt::linger, 0);
    brief.set(zmq::sockopt::rcvhwm, 1);
    brief.set(zmq::sockopt::rcvbuf, 65'536);
    brief.connect(door_->endpoint());
    const auto peer = ask(id, wire::get_status{}, brief);
    door_->send(peer, push(1, 16 * mib));
    door_->send(peer, push(2, 16 * mib));
    EXPECT_TRUE(soon([&] { return gone_ == static_cast<int>(id); })) << id;
  }
  door_->stop();
  spdlog::set_default_logger(before);
  const auto lines_max = 1 + (std::chrono::steady_clock::now() - begin) / std::chrono::seconds{10};
  const auto said = log.str();
  std::int64_t lines = 0;
  for (auto at = said.find("does not read"); at != said.npos;
       at = said.find("does not read", at + 1))
    ++lines;
  EXPECT_GE(lines, 1) << said;
  EXPECT_LE(lines, lines_max) << said;
}

/// A connection of bytes that speaks ZMTP as a DEALER; it is reset at its end.
struct raw_peer {
  explicit raw_peer(const std::string& endpoint) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port =
      htons(static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const linger at_once{1, 0};
    EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
    std::string greeting = "\xff" + std::string(8, '\0') + "\x7f\x03" + '\0' + "NULL";
    greeting.resize(64);
    say(greeting);
    hear(64);
    say(std::string{"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
                    "DEALER",
                    30});
    hear(2);
  }
  ~raw_peer() { ::close(fd); }
  void say(const std::string& bytes) {
    EXPECT_EQ(::send(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  void hear(std::size_t least) {
    std::string bytes(least, '\0');
    EXPECT_EQ(::recv(fd, bytes.data(), least, MSG_WAITALL), static_cast<ssize_t>(least));
  }

  int fd = ::socket(AF_INET, SOCK_STREAM, 0);
};

// libzmq aborts where its heartbeat is due on such a connection.
TEST_F(frontend_with_bounds, outlives_a_connection_that_is_reset_before_it_was_read) {
  open({});
  hold(true);
  (void)ask(1, wire::get_status{}); // the door's thread is held, so nothing more is read
  {
    raw_peer peer{door_->endpoint()};
    for (int i = 0; i < 1'000; ++i)
      peer.say({"\0\x01x", 3});
    ::usleep(200'000);
  }
  ::usleep(6'000'000); // longer than the heartbeats' interval was
  hold(false);
  EXPECT_TRUE(soon([&] { return metrics_->frames_rejected.malformed.value() > 0; }));
}

TEST_F(frontend_with_bounds, refuses_requests_beyond_the_bytes_of_a_client) {
  frontend_options options;
  options.in.bytes_of_client = mib;
  open(options);
  wire::submit_batch batch;
  batch.batch_key = "k";
  batch.sampling.max_new_tokens = 5;
  batch.groups.emplace_back().prompt_token_ids.resize(600'000, 1);
  const auto peer = ask(1, batch);
  client_.send(zmq::buffer(wire::encode(2, wire::request{batch})));
  const auto refused = receive();
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->request_id, 2u);
  EXPECT_EQ(std::get<wire::request_failed>(refused->body).code, errc::queue_full);
  EXPECT_EQ(heard(), 1u);
  door_->send(peer, {1, wire::request_done{}});
  ASSERT_TRUE(receive());
  (void)ask(3, batch);
}

TEST_F(frontend_with_bounds, counts_answers_that_nobody_hears) {
  frontend_options options;
  options.client.requests = 10;
  open(options);
  for (int round = 0; round < 3; ++round) {
    zmq::socket_t brief{context_, zmq::socket_type::dealer};
    brief.set(zmq::sockopt::linger, 0);
    brief.connect(door_->endpoint());
    const auto before = heard();
    for (std::uint64_t id = 1; id <= 10; ++id)
      brief.send(zmq::buffer(wire::encode(id, wire::request{wire::get_status{}})));
    ASSERT_TRUE(soon([&] { return heard() == before + 10; }));
    brief.close();
    ::usleep(100'000);
    std::vector<controller_request> all;
    {
      const std::scoped_lock lock{mutex_};
      all.assign(heard_.end() - 10, heard_.end());
    }
    const int gone = gone_;
    for (const auto& request : all)
      door_->send(request.peer, {request.envelope->request_id, wire::request_done{}});
    EXPECT_TRUE(soon([&] { return gone_ > gone; }));
  }
}

} // namespace
} // namespace rollcast
