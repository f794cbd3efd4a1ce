// Goal: over real sockets too, workers hear what siblings write, late or after losses, and neither
// strangers, dead workers nor a dead server do harm.
// Method: a server and links on loopback; between them, where it matters, a proxy that eats frames.
// What happens is waited for, so a loaded machine makes a test slower and nothing else.

#include "cluster/drafts/draft_server.hpp"
#include "cluster/drafts/shared_drafter.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>
#include <zmq.hpp>

#include <functional>
#include <map>
#include <thread>

namespace rollcast {
namespace {

using namespace std::chrono_literals;
using tokens = std::vector<token_id>;

constexpr group_id group{3};
constexpr draft_group name{7};

/// Waits until it is so, for much longer than it takes.
bool comes_true(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + 30s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end)
      return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

std::unique_ptr<draft_server> serve(std::string listen = "tcp://127.0.0.1:*",
                                    std::uint64_t bytes_max = 1u << 30) {
  draft_server_options options;
  options.listen = std::move(listen);
  options.board.bytes_max = bytes_max;
  options.board.follower_silent_max = 10min; // whoever is forgotten here has gone
  auto opened = draft_server::open(options);
  EXPECT_TRUE(opened) << opened.error().detail;
  return std::move(*opened);
}

/// An endpoint that nobody else can take while a server is away, as a port could be.
std::string socket_in(const temporary_directory& directory) {
  return "ipc://" + (directory / "drafts").string();
}

/// A link, and the streams that came of it.
struct worker {
  explicit worker(const std::string& server) {
    draft_link_options options;
    options.server = server;
    options.ledger.vocabulary = 1'000;
    options.ledger.follow_every = 100ms;
    auto opened = draft_link::open(options);
    EXPECT_TRUE(opened) << opened.error().detail;
    link = std::move(*opened);
  }

  /// True once this sibling's stream is `text`.
  bool hears(std::uint64_t response, const tokens& text) {
    return comes_true([&] {
      std::vector<heard_tokens> news;
      link->collect(1'000'000, news);
      for (const auto& h : news) {
        auto& s = streams[h.response];
        EXPECT_EQ(h.position, s.size()) << "in order, each once";
        EXPECT_EQ(h.group, group);
        s.insert(s.end(), h.tokens.begin(), h.tokens.end());
      }
      return streams[{response}] == text;
    });
  }
  void follow(std::uint64_t response, const tokens& text) {
    link->follow(group, name, {response}, text);
  }
  /// Writes `text` from `from` on, three tokens at a time.
  void write(std::uint64_t response, const tokens& text, std::size_t from) const {
    for (auto at = from; at < text.size(); at += 3) {
      const auto part = std::span{text}.subspan(at, std::min<std::size_t>(3, text.size() - at));
      link->wrote(name, {response}, static_cast<std::uint32_t>(at), part);
    }
  }
  /// Writes `text` from `from` on so that it becomes many frames: each piece waits for the one
  /// before.
  void write_in_pieces(std::uint64_t response, const tokens& text, std::size_t from) const {
    for (std::size_t end = from; end < text.size();) {
      const auto at = std::exchange(end, std::min(end + 115, text.size()));
      write(response, {text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end)}, at);
      EXPECT_TRUE(comes_true([&] { return link->counts().written_tokens >= end; }));
    }
  }

  std::unique_ptr<draft_link> link;
  std::map<response_id, tokens> streams;
};

tokens counted(std::size_t size) {
  tokens all(size);
  for (std::size_t i = 0; i < size; ++i)
    all[i] = static_cast<token_id>(i * 7 % 1'000);
  return all;
}

TEST(draft_link, siblings_on_two_workers_hear_each_other) {
  const auto server = serve();
  worker a{server->endpoint()};
  worker b{server->endpoint()};
  const auto text = counted(500);
  a.follow(1, {text.begin(), text.begin() + 10});
  b.follow(2, {text.begin(), text.begin() + 10});
  a.write(1, text, 10);
  b.write(2, text, 10);
  EXPECT_TRUE(a.hears(2, text));
  EXPECT_TRUE(b.hears(1, text));
  EXPECT_TRUE(a.streams[{1}].empty()) << "nobody hears himself";
  EXPECT_TRUE(comes_true([&] { return server->counts().relayed_tokens >= 1'000; }));
  EXPECT_TRUE(comes_true([&] { return server->counts().followers == 2; }));
}

TEST(draft_link, a_late_joiner_gets_what_was_written_before) {
  const auto server = serve();
  worker a{server->endpoint()};
  const auto text = counted(50'000);
  a.follow(1, text);
  worker late{server->endpoint()};
  late.follow(2, {1, 2});
  EXPECT_TRUE(late.hears(1, text));
}

TEST(draft_link, what_was_written_before_there_was_a_server_arrives) {
  const temporary_directory directory;
  const auto where = socket_in(directory);
  worker a{where};
  worker b{where};
  const auto text = counted(100);
  a.follow(1, text);
  b.follow(2, text);
  std::this_thread::sleep_for(50ms); // so that there is something to catch up on
  const auto server = serve(where);
  EXPECT_TRUE(b.hears(1, text));
  EXPECT_TRUE(a.hears(2, text));
}

TEST(draft_link, a_server_that_is_started_again_learns_everything_anew) {
  const temporary_directory directory;
  const auto where = socket_in(directory);
  auto server = serve(where);
  worker a{where};
  worker b{where};
  const auto text = counted(2'000);
  a.follow(1, {text.begin(), text.begin() + 10});
  b.follow(2, {1, 2});
  a.write(1, {text.begin(), text.begin() + 1'000}, 10);
  EXPECT_TRUE(b.hears(1, {text.begin(), text.begin() + 1'000}));
  server.reset();
  a.write(1, text, 1'000);
  server = serve(where);
  EXPECT_TRUE(b.hears(1, text));
  worker late{where};
  late.follow(3, {1, 2});
  EXPECT_TRUE(late.hears(1, text)) << "the new server has what the old one had";
}

/// Stands between one worker and the server and eats what `eats` says so of.
class hungry_proxy {
public:
  explicit hungry_proxy(const std::string& server, std::function<bool(const draft_frame&)> eats)
    : eats_(std::move(eats)) {
    front_.bind("tcp://127.0.0.1:*");
    endpoint = front_.get(zmq::sockopt::last_endpoint);
    back_.connect(server);
    front_.set(zmq::sockopt::linger, 0);
    back_.set(zmq::sockopt::linger, 0);
    thread_ = std::thread{[this] { run(); }};
  }
  ~hungry_proxy() {
    stop_ = true;
    thread_.join();
  }
  std::string endpoint;
  std::atomic<int> eaten{0};

private:
  void pass(zmq::socket_t& from, zmq::socket_t& to) {
    zmq::message_t body;
    while (from.recv(body, zmq::recv_flags::dontwait)) {
      const auto frame = decode_draft_frame({static_cast<std::byte*>(body.data()), body.size()});
      if (frame && eats_(*frame))
        ++eaten;
      else
        (void)to.send(body, zmq::send_flags::dontwait);
    }
  }
  void run() {
    while (!stop_) {
      zmq::pollitem_t items[]{{front_.handle(), 0, ZMQ_POLLIN, 0},
                              {back_.handle(), 0, ZMQ_POLLIN, 0}};
      zmq::poll(items, 2, 10ms);
      pass(front_, back_);
      pass(back_, front_);
    }
  }
  std::function<bool(const draft_frame&)> eats_;
  zmq::context_t context_;
  zmq::socket_t front_{context_, zmq::socket_type::dealer};
  zmq::socket_t back_{context_, zmq::socket_type::dealer};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST(draft_link, what_a_wire_eats_on_the_way_to_the_server_is_sent_again) {
  const auto server = serve();
  int passing = 0;
  hungry_proxy proxy{server->endpoint(), [&](const draft_frame& frame) {
                       return frame.kind == draft_message::tokens && frame.incarnation == 0
                              && ++passing % 3 == 2;
                     }};
  worker a{proxy.endpoint};
  worker b{server->endpoint()};
  const auto text = counted(3'000);
  a.follow(1, {text.begin(), text.begin() + 10});
  b.follow(2, {1, 2});
  a.write_in_pieces(1, text, 10);
  EXPECT_TRUE(b.hears(1, text));
  EXPECT_GT(proxy.eaten, 0);
  EXPECT_TRUE(comes_true([&] { return server->counts().gaps_repaired > 0; }));
}

TEST(draft_link, what_a_wire_eats_on_the_way_from_the_server_is_asked_for) {
  const auto server = serve();
  int passing = 0;
  hungry_proxy proxy{server->endpoint(), [&](const draft_frame& frame) {
                       return frame.kind == draft_message::tokens && frame.incarnation != 0
                              && ++passing % 3 == 2;
                     }};
  worker a{server->endpoint()};
  worker b{proxy.endpoint};
  const auto text = counted(3'000);
  b.follow(2, {1, 2});
  a.follow(1, {text.begin(), text.begin() + 10});
  ASSERT_TRUE(comes_true([&] { return server->counts().followers == 2; }));
  a.write_in_pieces(1, text, 10);
  EXPECT_TRUE(b.hears(1, text));
  EXPECT_GT(proxy.eaten, 0);
  EXPECT_TRUE(comes_true([&] { return b.link->counts().gaps_repaired > 0; }));
}

TEST(draft_link, the_last_tokens_of_all_are_not_lost_either) {
  const auto server = serve();
  bool once = true;
  hungry_proxy proxy{server->endpoint(), [&](const draft_frame& frame) {
                       return frame.kind == draft_message::tokens && frame.position > 0
                              && std::exchange(once, false);
                     }};
  worker a{server->endpoint()};
  worker b{proxy.endpoint};
  b.follow(2, {1, 2});
  a.follow(1, {1, 2});
  EXPECT_TRUE(b.hears(1, {1, 2}));
  a.link->wrote(name, {1}, 2, tokens{3, 4}); // eaten, and nothing follows that shows the gap
  EXPECT_TRUE(b.hears(1, {1, 2, 3, 4}));
  EXPECT_EQ(proxy.eaten, 1);
}

TEST(draft_link, a_worker_that_dies_stops_nobody) {
  const auto server = serve();
  worker a{server->endpoint()};
  auto b = std::make_unique<worker>(server->endpoint());
  worker c{server->endpoint()};
  a.follow(1, {1, 2});
  b->follow(2, {1, 2});
  c.follow(3, {1, 2});
  ASSERT_TRUE(c.hears(1, {1, 2}));
  ASSERT_TRUE(b->hears(1, {1, 2}));
  b.reset();
  const auto text = counted(1'000);
  tokens whole{1, 2};
  whole.insert(whole.end(), text.begin(), text.end());
  a.write(1, whole, 2);
  EXPECT_TRUE(c.hears(1, whole));
  EXPECT_TRUE(comes_true([&] { // long before its silence would tell
    whole.push_back(5);
    a.write(1, whole, whole.size() - 1);
    return server->counts().followers == 2;
  }));
}

TEST(draft_link, strangers_are_counted_and_ignored) {
  const auto server = serve();
  zmq::context_t context;
  zmq::socket_t stranger{context, zmq::socket_type::dealer};
  stranger.set(zmq::sockopt::linger, 0);
  stranger.connect(server->endpoint());
  (void)stranger.send(zmq::buffer("hello"), zmq::send_flags::none);
  (void)stranger.send(zmq::buffer("many"), zmq::send_flags::sndmore);
  (void)stranger.send(zmq::buffer("parts"), zmq::send_flags::sndmore);
  (void)stranger.send(zmq::buffer("here"), zmq::send_flags::none);
  (void)stranger.send(zmq::message_t{}, zmq::send_flags::none);
  EXPECT_TRUE(comes_true([&] { return server->counts().dropped_malformed == 3; }));
  worker a{server->endpoint()};
  worker b{server->endpoint()};
  a.follow(1, {1, 2});
  b.follow(2, {1, 2});
  EXPECT_TRUE(b.hears(1, {1, 2}));
}

TEST(draft_link, the_server_keeps_within_its_memory) {
  const auto server = serve("tcp://127.0.0.1:*", 256 << 10);
  worker a{server->endpoint()};
  for (std::uint64_t g = 1; g <= 100; ++g)
    a.link->follow({g}, {g}, {g}, counted(2'000));
  EXPECT_TRUE(comes_true([&] { return server->counts().bytes > 200 << 10; }));
  for (int i = 0; i < 100; ++i) {
    EXPECT_LE(server->counts().bytes, 256u << 10);
    std::this_thread::sleep_for(2ms);
  }
}

TEST(draft_link, a_bad_endpoint_is_refused) {
  EXPECT_EQ(draft_link::open({"nowhere", {}}).error().code, errc::bad_config);
  EXPECT_EQ(draft_server::open({"nowhere", {}}).error().code, errc::bad_config);
  const auto server = serve();
  EXPECT_EQ(draft_server::open({server->endpoint(), {}}).error().code, errc::address_in_use);
}

/// A worker's drafter, played by hand.
struct drafting {
  explicit drafting(const std::string& server) {
    speculation_options options;
    options.how = speculation::group;
    options.tokens_max = 4;
    drafts = std::make_shared<speculator>(options);
    it = std::make_unique<shared_drafter>(drafts, std::move(worker{server}.link),
                                          [this](double seconds) { ages.push_back(seconds); });
  }
  void follow(std::uint64_t response, const tokens& text) {
    drafts->follow({response}, group, false, text);
    it->follow({response}, group, 2, text);
  }
  tokens drafted(std::uint64_t response, const tokens& text) {
    std::vector<draft_token> draft;
    const draft_seat seat{{response}, text, 100, &draft};
    it->draft({&seat, 1}, {1, 100, text.size()});
    tokens out;
    for (const auto& d : draft)
      out.push_back(d.token);
    return out;
  }
  void learn(std::uint64_t response, const tokens& fresh) {
    const draft_outcome outcome{{response}, {}, 0, fresh};
    it->learn({&outcome, 1}, {1, 100, 10}, 0.001);
  }
  std::shared_ptr<speculator> drafts;
  std::unique_ptr<shared_drafter> it;
  std::vector<double> ages;
};

TEST(shared_drafter, drafts_what_a_sibling_wrote_on_another_worker) {
  const auto server = serve();
  drafting a{server->endpoint()};
  drafting b{server->endpoint()};
  const tokens start{11, 12};
  a.follow(1, start);
  b.follow(2, start);
  EXPECT_TRUE(comes_true([&] { return server->counts().followers == 2; }));
  a.learn(1, {13, 14});
  a.learn(1, {15});
  a.learn(1, {16});
  EXPECT_TRUE(comes_true([&] { return b.drafted(2, start) == (tokens{13, 14, 15, 16}); }));
  ASSERT_FALSE(b.ages.empty());
  EXPECT_GT(b.ages.back(), 0);
  EXPECT_LT(b.ages.back(), 30);
}

TEST(shared_drafter, what_comes_late_of_a_group_that_is_over_is_not_kept) {
  const auto server = serve();
  drafting a{server->endpoint()};
  drafting b{server->endpoint()};
  const tokens start{11, 12};
  a.follow(1, start);
  b.follow(2, start);
  EXPECT_TRUE(comes_true([&] { return server->counts().followers == 2; }));
  b.it->leave({2});
  b.it->forget(group);
  a.learn(1, {13, 14, 15});
  EXPECT_TRUE(comes_true([&] { return server->counts().relayed_tokens >= 3; }));
  for (int i = 0; i < 50; ++i) {
    (void)b.drafted(2, start);
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(b.drafts->figures().bytes, 0u);
}

TEST(shared_drafter, a_response_that_runs_here_is_what_it_writes_here) {
  const auto server = serve();
  drafting a{server->endpoint()};
  drafting b{server->endpoint()};
  const tokens start{11, 12};
  a.follow(1, start);
  b.follow(1, start); // given up on a by the scheduler, which a does not know yet
  a.learn(1, {13, 14, 15});
  EXPECT_TRUE(comes_true([&] { return server->counts().relayed_tokens >= 3; }));
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(b.drafted(1, start).empty()) << "its own future is not its past";
    std::this_thread::sleep_for(1ms);
  }
  b.it->leave({1});
  EXPECT_EQ(b.drafts->hear(group, {1}, 0, {}), 2u);
}

} // namespace
} // namespace rollcast
