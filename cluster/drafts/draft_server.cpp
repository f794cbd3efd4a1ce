#include "cluster/drafts/draft_server.hpp"

#include "cluster/security/curve_socket.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "cluster/transport/silent_peers.hpp"
#include "cluster/transport/wake_fd.hpp"

#include <sys/random.h>
#include <zmq.hpp>

#include <cerrno>
#include <set>
#include <thread>
#include <utility>

namespace rollcast {
namespace {

/// A number that no server before this one had. It decides no bit of a response.
std::uint64_t fresh_incarnation() {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number)
    number =
      static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  return number | 1; // 0 means a worker
}

enum class sending { done, full, gone };

/// Sends one part without waiting, and again if a signal interrupts: a message that lacks its
/// second part would take the next one's first for it. Anything else that ZeroMQ throws
/// (EHOSTUNREACH) says that the peer is gone.
sending send_part(zmq::socket_t& socket, std::string_view bytes, zmq::send_flags flags) {
  while (true) {
    try {
      return socket.send(zmq::buffer(bytes), flags | zmq::send_flags::dontwait) ? sending::done
                                                                                : sending::full;
    } catch (const zmq::error_t& e) {
      if (e.num() != EINTR)
        return sending::gone;
    }
  }
}

} // namespace

class draft_server::loop {
public:
  using clock = std::chrono::steady_clock;

  explicit loop(draft_server_options options)
    : options_(std::move(options)), board_(options_.board, fresh_incarnation()),
      listener_(options_.keys) {}
  ~loop();
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  result<void> bind();
  void start() {
    thread_ = std::thread{[this] { run(); }};
  }
  const std::string& endpoint() const noexcept { return listener_.endpoint(); }

  counters counts;

private:
  void run();
  void hear();
  bool take_next();
  void deliver();
  void show_counts();

  draft_server_options options_;
  draft_board board_;
  zmq::context_t context_;
  zmq::socket_t router_;
  curve_listener listener_;
  std::unique_ptr<doorkeeper> door_; ///< Null without keys; ends before the socket.
  wake_fd wake_;
  std::uint64_t unsent_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread thread_; ///< Last: it uses all of the above.
};

draft_server::loop::~loop() {
  stopping_ = true;
  wake_.ring();
  if (thread_.joinable())
    thread_.join();
}

result<void> draft_server::loop::bind() {
  try {
    router_ = zmq::socket_t{context_, zmq::socket_type::router};
    router_.set(zmq::sockopt::linger, 0);
    router_.set(zmq::sockopt::router_mandatory, true); // to know who is gone or does not read
    router_.set(zmq::sockopt::sndhwm, options_.frames_max);
    router_.set(zmq::sockopt::rcvhwm, options_.frames_max);
    router_.set(zmq::sockopt::maxmsgsize, std::int64_t{draft_frame_bytes_max});
    end_silent_connections(router_, std::chrono::seconds{4});
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config, std::string{"cannot open the draft server: "} + e.what());
  }
  if (options_.keys) {
    auto door = doorkeeper::open(context_, router_, {options_.keys});
    if (!door)
      return fail(door);
    door_ = std::move(*door);
  }
  return listener_.bind(router_, options_.listen, "cannot bind the draft server to");
}

void draft_server::loop::run() {
  auto expired = clock::now();
  while (!stopping_) {
    std::vector<zmq::pollitem_t> items{{router_.handle(), 0, ZMQ_POLLIN, 0},
                                       {nullptr, wake_.descriptor(), ZMQ_POLLIN, 0}};
    try {
      zmq::poll(items, std::chrono::milliseconds{500});
    } catch (const zmq::error_t&) { // interrupted by a signal: look at everything and poll again
    }
    if ((items[0].revents & ZMQ_POLLIN) != 0)
      hear();
    const auto now = clock::now();
    if (now - expired > std::chrono::seconds{1}) {
      expired = now;
      board_.expire(now);
    }
    listener_.turn(router_);
    show_counts();
  }
}

void draft_server::loop::hear() {
  for (int frames = 0; frames < 1'024; ++frames) {
    try {
      if (!take_next())
        return;
    } catch (const zmq::error_t&) { // interrupted by a signal: the next turn reads on
      return;
    }
  }
}

/// Reads a message and does what it says. @returns false if there is none. Throws if ZeroMQ does.
bool draft_server::loop::take_next() {
  zmq::message_t from;
  zmq::message_t body;
  if (!router_.recv(from, zmq::recv_flags::dontwait))
    return false;
  bool whole = from.more();
  if (whole)
    whole = router_.recv(body, zmq::recv_flags::dontwait).has_value() && !body.more();
  for (bool more = body.more(); more;) { // a stranger's: read to its end
    zmq::message_t rest;
    more = router_.recv(rest, zmq::recv_flags::dontwait).has_value() && rest.more();
  }
  if (door_ && !door_->who_sent(body))
    return true; // its key was taken from the list
  const auto frame = decode_draft_frame({static_cast<std::byte*>(body.data()), body.size()});
  if (!whole || !frame) {
    ++counts.dropped_malformed;
    return true;
  }
  board_.take(from.to_string(), *frame, clock::now());
  deliver();
  return true;
}

void draft_server::loop::deliver() {
  std::set<std::string> gone;
  for (const auto& letter : board_.outbox) {
    const auto bytes = encode(letter.frame);
    for (const auto& peer : letter.to) {
      if (gone.contains(peer))
        continue;
      // Only the first part can fail: ZeroMQ accepts a message whole or not at all.
      switch (send_part(router_, peer, zmq::send_flags::sndmore)) {
        case sending::done: (void)send_part(router_, bytes, zmq::send_flags::none); break;
        case sending::full: ++unsent_; break;
        case sending::gone: gone.insert(peer); break;
      }
    }
  }
  board_.outbox.clear();
  for (const auto& peer : gone)
    board_.forget(peer);
}

void draft_server::loop::show_counts() {
  const auto& f = board_.figures();
  counts.groups = f.groups;
  counts.bytes = f.bytes;
  counts.followers = f.followers;
  counts.relayed_tokens = f.relayed_tokens;
  counts.gaps_repaired = f.gaps_repaired;
  counts.dropped_full = f.refused + unsent_;
  counts.dropped_conflict = f.conflicts;
  counts.turned_ns = clock::now().time_since_epoch().count();
}

// -- the public class ---------------------------------------------------------

draft_server::draft_server(std::unique_ptr<loop> l) noexcept : loop_(std::move(l)) {}
draft_server::~draft_server() = default;

result<std::unique_ptr<draft_server>> draft_server::open(draft_server_options options) {
  auto made = std::make_unique<loop>(std::move(options));
  if (auto bound = made->bind(); !bound)
    return fail(bound);
  made->start();
  return std::unique_ptr<draft_server>{new draft_server{std::move(made)}};
}

const std::string& draft_server::endpoint() const noexcept {
  return loop_->endpoint();
}

const draft_server::counters& draft_server::counts() const noexcept {
  return loop_->counts;
}

} // namespace rollcast
