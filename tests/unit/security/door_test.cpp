// Goal: at a listening socket with keys only listed keys get a word in, a key that is taken from
// the list is shown out, a new key of the listener ends no connection while the old one is good,
// and connections have a bound; strangers do not fill the log.
// Method: real sockets on loopback, with good, bad and no keys; the files change meanwhile.

#include "cluster/security/curve_socket.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/unit/security/few_files.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

namespace rollcast {
namespace {

using std::chrono::milliseconds;

/// A ROUTER with a door, on the test's own thread.
class door_with_keys : public testing::Test {
protected:
  void put(const std::string& name, const std::string& text) {
    const auto fresh = where_ / (name + ".new");
    std::ofstream{fresh} << text;
    ::chmod(fresh.c_str(), 0600);
    std::filesystem::rename(fresh, where_ / name);
  }

  void open(door_options options = {}, milliseconds grace = std::chrono::hours{1}) {
    put("secret", server_.secret_key);
    put("clients", "alice " + alice_.public_key + " batches=3\n");
    policy_ = curve_policy::open({where_ / "secret", where_ / "clients", {}, grace}).value();
    options.keys = policy_;
    listen(options, policy_);
  }

  void listen(const door_options& options, const std::shared_ptr<curve_policy>& keys) {
    router_ = zmq::socket_t{context_, zmq::socket_type::router};
    router_.set(zmq::sockopt::linger, 0);
    router_.set(zmq::sockopt::router_mandatory, true);
    door_ = doorkeeper::open(context_, router_, options).value();
    listener_ = std::make_unique<curve_listener>(keys);
    const auto bound = listener_->bind(router_, "tcp://127.0.0.1:*", "test");
    ASSERT_TRUE(bound) << bound.error().detail;
  }

  zmq::socket_t dealer() {
    zmq::socket_t made{dialling_, zmq::socket_type::dealer};
    made.set(zmq::sockopt::linger, 0);
    made.set(zmq::sockopt::reconnect_ivl, 20);
    return made;
  }
  zmq::socket_t dial(const key_pair& keys, const std::string& server) {
    auto made = dealer();
    dial_with(made, keys, server);
    made.connect(listener_->endpoint());
    return made;
  }

  struct message {
    std::string peer;
    zmq::message_t body;
  };
  /// What the listener hears within the time.
  std::optional<message> heard(milliseconds within) {
    const auto until = std::chrono::steady_clock::now() + within;
    while (std::chrono::steady_clock::now() < until) {
      listener_->turn(router_);
      zmq::message_t peer;
      message got;
      if (router_.recv(peer, zmq::recv_flags::dontwait)) {
        (void)router_.recv(got.body, zmq::recv_flags::none);
        got.peer = peer.to_string();
        return got;
      }
      ::usleep(2'000);
    }
    return std::nullopt;
  }
  bool gets_through(zmq::socket_t& client, milliseconds within = milliseconds{3'000}) {
    // ZeroMQ gives a connection up for good that was refused: there is nowhere to put it then.
    return client.send(zmq::str_buffer("hello"), zmq::send_flags::dontwait)
           && heard(within).has_value();
  }
  template <class Condition>
  static bool soon(Condition condition) {
    for (int i = 0; i < 500; ++i, ::usleep(10'000))
      if (condition())
        return true;
    return false;
  }

  temporary_directory where_;
  key_pair server_ = make_keys();
  key_pair alice_ = make_keys();
  key_pair mallory_ = make_keys();
  std::shared_ptr<curve_policy> policy_;
  zmq::context_t context_{1};
  zmq::context_t dialling_{1};
  zmq::socket_t router_;
  std::unique_ptr<curve_listener> listener_;
  std::unique_ptr<doorkeeper> door_; ///< Ends first.
};

TEST_F(door_with_keys, lets_in_who_is_listed_under_the_listed_name) {
  open();
  auto alice = dial(alice_, server_.public_key);
  alice.send(zmq::str_buffer("hello"), zmq::send_flags::none);
  const auto got = heard(milliseconds{3'000});
  ASSERT_TRUE(got);
  const auto who = door_->who_sent(got->body);
  ASSERT_TRUE(who);
  EXPECT_EQ(who->client, "alice");
  EXPECT_EQ(who->limits.value().batches, 3u);
}

TEST_F(door_with_keys, hears_nobody_else) {
  open();
  auto unlisted = dial(mallory_, server_.public_key);
  auto misled = dial(alice_, mallory_.public_key);
  auto plain = dealer();
  plain.connect(listener_->endpoint());
  auto thief = dial({alice_.public_key, mallory_.secret_key}, server_.public_key);
  for (auto* client : {&unlisted, &misled, &plain, &thief})
    client->send(zmq::str_buffer("hello"), zmq::send_flags::dontwait);
  EXPECT_FALSE(heard(milliseconds{700}));
  EXPECT_GT(door_->counts().refused_handshake, 0u);
}

TEST_F(door_with_keys, shows_out_whose_key_is_taken_from_the_list) {
  open();
  auto alice = dial(alice_, server_.public_key);
  alice.send(zmq::str_buffer("hello"), zmq::send_flags::none);
  auto got = heard(milliseconds{3'000});
  ASSERT_TRUE(got && door_->who_sent(got->body));
  const auto bob = make_keys();
  put("clients", "bob " + bob.public_key);
  ASSERT_TRUE(soon([&] { return !policy_->admit(alice_.public_key); }));
  EXPECT_FALSE(door_->who_sent(got->body)); // what it said before counts no more
  EXPECT_TRUE(soon([&] {
    try {
      (void)router_.send(zmq::buffer(got->peer), zmq::send_flags::sndmore);
      (void)router_.send(zmq::str_buffer("push"), zmq::send_flags::dontwait);
      return false;
    } catch (const zmq::error_t& e) {
      return e.num() == EHOSTUNREACH;
    }
  }))
    << "its connection lives on";
  while (heard(milliseconds{50})) {
  }
  EXPECT_FALSE(gets_through(alice, milliseconds{500}));
  auto bobs = dial(bob, server_.public_key);
  EXPECT_TRUE(gets_through(bobs));
}

TEST_F(door_with_keys, ends_who_speaks_for_the_first_time_after_its_key_was_taken_from_the_list) {
  open();
  auto alice = dial(alice_, server_.public_key);
  ASSERT_TRUE(soon([&] { return door_->counts().connections == 1; }));
  ::usleep(300'000); // for the handshake
  put("clients", "bob " + make_keys().public_key);
  ASSERT_TRUE(soon([&] { return !policy_->admit(alice_.public_key); }));
  alice.send(zmq::str_buffer("hello"), zmq::send_flags::none);
  const auto got = heard(milliseconds{3'000});
  ASSERT_TRUE(got);
  EXPECT_FALSE(door_->who_sent(got->body));
  EXPECT_TRUE(soon([&] { return door_->counts().connections == 0; }));
}

TEST_F(door_with_keys, says_once_that_unknown_keys_are_refused) {
  const auto before = spdlog::default_logger();
  std::ostringstream log;
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
    "door", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  open();
  std::vector<zmq::socket_t> strangers;
  for (int i = 0; i < 20; ++i)
    strangers.push_back(dial(mallory_, server_.public_key));
  EXPECT_TRUE(soon([&] { return door_->counts().refused_handshake >= 20; }));
  door_.reset();
  spdlog::set_default_logger(before);
  const auto said = log.str();
  const auto first = said.find("is not in the allow list");
  EXPECT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("is not in the allow list", first + 1), std::string::npos) << said;
}

TEST_F(door_with_keys, keeps_connections_when_the_listener_gets_a_new_key) {
  open();
  auto early = dial(alice_, server_.public_key);
  ASSERT_TRUE(gets_through(early));
  const auto fresh = make_keys();
  put("secret", fresh.secret_key);
  ASSERT_TRUE(soon([&] { return policy_->current() == fresh; }));
  EXPECT_TRUE(gets_through(early)) << "the connection that was there";
  for (int round = 0; round < 8; ++round) {
    auto with_new = dial(alice_, fresh.public_key);
    EXPECT_TRUE(gets_through(with_new)) << "new key, round " << round;
    auto with_old = dial(alice_, server_.public_key);
    EXPECT_TRUE(gets_through(with_old)) << "old key, round " << round;
  }
}

TEST_F(door_with_keys, forgets_the_old_key_when_its_grace_is_over) {
  open({}, milliseconds{1'500});
  const auto fresh = make_keys();
  put("secret", fresh.secret_key);
  ASSERT_TRUE(soon([&] { return policy_->valid().size() == 2; }));
  auto with_new = dial(alice_, fresh.public_key);
  EXPECT_TRUE(gets_through(with_new));
  ASSERT_TRUE(soon([&] { return policy_->valid().size() == 1; }));
  (void)heard(milliseconds{300}); // binds anew
  EXPECT_TRUE(gets_through(with_new)) << "it dials again by itself";
  auto with_old = dial(alice_, server_.public_key);
  EXPECT_FALSE(gets_through(with_old, milliseconds{700}));
}

TEST_F(door_with_keys, is_bound_again_after_every_one_of_many_changes) {
  open({}, milliseconds{0});
  for (int round = 0; round < 3; ++round) {
    const auto fresh = make_keys();
    put("secret", fresh.secret_key);
    ASSERT_TRUE(soon([&] { return policy_->current() == fresh; }));
    auto client = dial(alice_, fresh.public_key);
    EXPECT_TRUE(gets_through(client, milliseconds{5'000})) << "round " << round;
  }
}

TEST_F(door_with_keys, does_not_share_its_port_with_another_listener) {
  open();
  zmq::socket_t other{context_, zmq::socket_type::router};
  curve_listener second{policy_};
  const auto bound = second.bind(other, listener_->endpoint(), "cannot listen on");
  ASSERT_FALSE(bound);
  EXPECT_EQ(bound.error().code, errc::address_in_use);
  other.set(zmq::sockopt::linger, 0);
}

int raw_connection(const std::string& endpoint) {
  const int made = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port =
    htons(static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(made, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  return made;
}

TEST_F(door_with_keys, ends_connections_over_the_bound_and_counts_what_goes) {
  listen({nullptr, 100, 10}, nullptr);
  std::vector<int> peers;
  for (int i = 0; i < 60; ++i)
    peers.push_back(raw_connection(listener_->endpoint()));
  EXPECT_TRUE(soon([&] { return door_->counts().refused_too_many >= 50; }))
    << door_->counts().refused_too_many;
  EXPECT_TRUE(soon([&] { return door_->counts().connections <= 10; }));
  for (const int peer : peers)
    ::close(peer);
  EXPECT_TRUE(soon([&] { return door_->counts().connections == 0; }));
  auto plain = dealer();
  plain.connect(listener_->endpoint());
  plain.send(zmq::str_buffer("hello"), zmq::send_flags::none);
  const auto got = heard(milliseconds{3'000});
  ASSERT_TRUE(got);
  EXPECT_EQ(door_->who_sent(got->body).value().client, "127.0.0.1");
}

TEST_F(door_with_keys, ends_connections_of_a_client_over_its_bound) {
  open();
  const auto bob = make_keys();
  const auto second = make_keys();
  put("clients", "alice " + alice_.public_key + " connections=2\nbob " + bob.public_key + "\nalice "
                   + second.public_key + " connections=2\n");
  ASSERT_TRUE(soon([&] { return policy_->admit(bob.public_key).has_value(); }));
  const auto is_heard = [&](zmq::socket_t& client) {
    client.send(zmq::str_buffer("hello"), zmq::send_flags::dontwait);
    const auto got = heard(milliseconds{3'000});
    return got && door_->who_sent(got->body);
  };
  auto first = dial(alice_, server_.public_key);
  EXPECT_TRUE(is_heard(first));
  {
    auto with_other_key = dial(second, server_.public_key);
    EXPECT_TRUE(is_heard(with_other_key));
    auto third = dial(alice_, server_.public_key);
    EXPECT_FALSE(is_heard(third)) << "two by whatever key";
    EXPECT_TRUE(soon([&] { return door_->counts().refused_too_many > 0; }));
    auto bobs = dial(bob, server_.public_key);
    while (true) { // the third one dials again and again
      bobs.send(zmq::str_buffer("bob"), zmq::send_flags::dontwait);
      const auto got = heard(milliseconds{3'000});
      ASSERT_TRUE(got);
      if (got->body.to_string() != "bob")
        continue;
      EXPECT_EQ(door_->who_sent(got->body).value().client, "bob");
      break;
    }
    EXPECT_TRUE(is_heard(first)) << "those within the bound stay";
  }
  EXPECT_TRUE(soon([&] {
    auto again = dial(alice_, server_.public_key);
    return is_heard(again);
  }))
    << "who has gone makes room";
}

TEST_F(door_with_keys, does_not_blame_a_connection_for_what_came_by_one_that_had_its_descriptor) {
  open();
  const auto bob = make_keys();
  put("clients", "alice " + alice_.public_key + " connections=1\nbob " + bob.public_key);
  ASSERT_TRUE(soon([&] { return policy_->admit(bob.public_key).has_value(); }));
  auto first = dial(alice_, server_.public_key);
  first.send(zmq::str_buffer("hello"), zmq::send_flags::none);
  const auto hello = heard(milliseconds{3'000});
  ASSERT_TRUE(hello && door_->who_sent(hello->body));
  std::optional<message> late;
  std::optional<message> fresh;
  zmq::socket_t bobs;
  const auto descriptor_of = [](message& m) { return ::zmq_msg_get(m.body.handle(), ZMQ_SRCFD); };
  for (int round = 0; round < 50; ++round) {
    {
      auto second = dial(alice_, server_.public_key);
      second.send(zmq::str_buffer("late"), zmq::send_flags::none);
      late = heard(milliseconds{3'000});
      ASSERT_TRUE(late);
    }
    ASSERT_TRUE(soon([&] { return door_->counts().connections == 1; }));
    bobs = dial(bob, server_.public_key);
    bobs.send(zmq::str_buffer("hello"), zmq::send_flags::none);
    fresh = heard(milliseconds{3'000});
    ASSERT_TRUE(fresh);
    if (descriptor_of(*fresh) == descriptor_of(*late))
      break;
    bobs.close();
    ASSERT_TRUE(soon([&] { return door_->counts().connections == 1; }));
  }
  ASSERT_EQ(descriptor_of(*fresh), descriptor_of(*late)) << "never given again";
  EXPECT_FALSE(door_->who_sent(late->body)) << "alice has her one";
  EXPECT_EQ(door_->who_sent(fresh->body).value().client, "bob");
  ::usleep(2'500'000); // whoever is refused is ended by then
  bobs.send(zmq::str_buffer("again"), zmq::send_flags::none);
  const auto again = heard(milliseconds{3'000});
  ASSERT_TRUE(again);
  EXPECT_EQ(again->peer, fresh->peer) << "its connection was ended";
}

TEST_F(door_with_keys, leaves_room_for_files_of_the_process) {
  rlimit files{};
  {
    const few_files limit{60};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    listen({}, nullptr);
  }
  const auto bound = files.rlim_cur * 3 / 8; // two doors leave a quarter
  std::vector<int> peers;
  for (int i = 0; i < 200; ++i)
    peers.push_back(raw_connection(listener_->endpoint()));
  EXPECT_TRUE(soon([&] { return door_->counts().refused_too_many >= 200 - bound; }))
    << door_->counts().refused_too_many << " of 200, " << bound << " may stay";
  EXPECT_TRUE(soon([&] { return door_->counts().connections <= bound; }));
  for (const int peer : peers)
    ::close(peer);
}

TEST_F(door_with_keys, hears_nobody_where_there_is_no_door) {
  open();
  door_.reset();
  auto alice = dial(alice_, server_.public_key);
  alice.send(zmq::str_buffer("hello"), zmq::send_flags::dontwait);
  EXPECT_FALSE(heard(milliseconds{700}));
}

TEST_F(door_with_keys, ends_a_half_greeting_in_time) {
  open();
  const int peer = raw_connection(listener_->endpoint());
  ASSERT_EQ(::send(peer, "\xff\0\0\0", 4, 0), 4);
  EXPECT_TRUE(soon([&] { return door_->counts().connections == 1; }));
  EXPECT_TRUE(soon([&] { return door_->counts().connections == 0; }) // 5 s
              || soon([&] { return door_->counts().connections == 0; }));
  ::close(peer);
}

} // namespace
} // namespace rollcast
