#include "actors/frontend.hpp"

#include "cluster/security/curve_socket.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "cluster/transport/wake_fd.hpp"
#include "cluster/wire/codec.hpp"

#include <spdlog/spdlog.h>
#include <zmq.hpp>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace rollcast {

class frontend::loop {
public:
  loop(frontend_options options, std::shared_ptr<scheduler_metrics> metrics)
    : options_(std::move(options)), metrics_(std::move(metrics)), listener_(options_.keys) {}
  ~loop() { stop(); }
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  result<void> bind();
  void start(handlers to) {
    to_ = std::move(to);
    thread_ = std::thread{[this] { run(); }};
  }
  void stop();
  void post(const std::string& peer, wire::event_envelope what);
  const std::string& endpoint() const noexcept { return listener_.endpoint(); }

private:
  struct outgoing {
    std::string peer;
    wire::event_envelope what;
  };

  void run();
  void hear();
  void hear(const std::string& peer, const visitor& who, const zmq::message_t& body);
  void count_refused(errc code);
  void say_waiting();
  void note_answered(const std::string& peer, std::size_t most);
  void show_door();
  void say(const std::string& peer, std::uint64_t request_id, const wire::event& what);

  frontend_options options_;
  std::shared_ptr<scheduler_metrics> metrics_;
  handlers to_;
  wake_fd wake_;
  std::mutex mutex_;
  std::vector<outgoing> waiting_; ///< Guarded by `mutex_`.
  struct unanswered {
    std::size_t requests = 0;
    std::string client;
  };
  std::unordered_map<std::string, unanswered> unanswered_;     ///< By peer; the thread's own.
  std::unordered_map<std::string, std::size_t> unanswered_of_; ///< By client.
  std::size_t unanswered_all_ = 0;
  std::set<std::string> deaf_; ///< Peers that the log was told of.
  std::atomic<bool> running_{true};
  zmq::context_t context_{1};
  zmq::socket_t router_;
  curve_listener listener_;
  std::unique_ptr<doorkeeper> door_; ///< Ends before the socket.
  std::thread thread_;
};

result<void> frontend::loop::bind() {
  try {
    router_ = zmq::socket_t{context_, zmq::socket_type::router};
    router_.set(zmq::sockopt::linger, 500);
    router_.set(zmq::sockopt::router_mandatory, true);
    router_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(wire::limits.message_bytes));
    router_.set(zmq::sockopt::sndhwm, options_.messages_per_peer_max);
    router_.set(zmq::sockopt::rcvhwm, 256);
    // A controller that vanished without a word is noticed, and its queue freed.
    router_.set(zmq::sockopt::heartbeat_ivl, 5'000);
    router_.set(zmq::sockopt::heartbeat_timeout, 15'000);
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config, std::string{"cannot listen for controllers: "} + e.what());
  }
  auto door = doorkeeper::open(
    context_, router_,
    {options_.keys, options_.connections_max, options_.connections_per_address_max});
  if (!door)
    return fail(door);
  door_ = std::move(*door);
  return listener_.bind(router_, options_.bind, "cannot listen for controllers on");
}

void frontend::loop::stop() {
  running_ = false;
  wake_.ring();
  if (thread_.joinable())
    thread_.join();
  door_.reset(); // it watches the socket
  router_.close();
  to_ = {}; // they hold actors, which must not outlive their system
}

void frontend::loop::post(const std::string& peer, wire::event_envelope what) {
  {
    const std::scoped_lock lock{mutex_};
    waiting_.push_back({peer, std::move(what)});
  }
  wake_.ring();
}

void frontend::loop::run() {
  while (running_) {
    std::vector<zmq::pollitem_t> items{{router_.handle(), 0, ZMQ_POLLIN, 0},
                                       {nullptr, wake_.descriptor(), ZMQ_POLLIN, 0}};
    try {
      zmq::poll(items, std::chrono::milliseconds{1'000});
    } catch (const zmq::error_t&) { // interrupted by a signal: look at everything and poll again
    }
    if ((items[1].revents & ZMQ_POLLIN) != 0)
      wake_.silence();
    say_waiting();
    if ((items[0].revents & ZMQ_POLLIN) != 0)
      hear();
    listener_.turn(router_);
    show_door();
  }
  say_waiting();
}

void frontend::loop::show_door() {
  const auto& door = door_->counts();
  metrics_->controller_connections.set(static_cast<double>(door.connections));
  metrics_->connections_refused.handshake.raise_to(door.refused_handshake);
  metrics_->connections_refused.too_many.raise_to(door.refused_too_many);
}

// -- in -----------------------------------------------------------------------

void frontend::loop::hear() {
  for (int turn = 0; turn < 64; ++turn) { // bounded, so that answers get their turn
    zmq::message_t peer;
    zmq::message_t body;
    std::size_t parts = 0;
    try {
      if (!router_.recv(peer, zmq::recv_flags::dontwait))
        return;
      for (bool more = peer.more(); more; ++parts) {
        zmq::message_t part;
        if (!router_.recv(part, zmq::recv_flags::dontwait))
          break;
        more = part.more();
        if (parts == 0)
          body = std::move(part);
      }
    } catch (const zmq::error_t&) {
      return;
    }
    const auto who = door_->who_sent(body);
    if (!who)
      continue; // its key was taken from the list: it gets nothing, not even a refusal
    const auto name = peer.to_string();
    if (parts == 1) {
      hear(name, *who, body);
      continue;
    }
    metrics_->frames_rejected.malformed.add();
    say(name, 0,
        wire::request_failed{errc::frame_malformed,
                             "message of " + std::to_string(parts)
                               + " parts, an envelope is one part",
                             {},
                             {}});
  }
}

void frontend::loop::hear(const std::string& peer, const visitor& who, const zmq::message_t& body) {
  const std::span<const std::byte> bytes{body.data<std::byte>(), body.size()};
  auto envelope = wire::decode_request(bytes);
  if (!envelope) {
    count_refused(envelope.error().code);
    return say(peer, wire::request_id_of(bytes),
               wire::request_failed{envelope.error().code, envelope.error().detail, {}, {}});
  }
  const auto limits = who.limits.value_or(options_.client);
  // Counted by peer and client, so that one who asks too much is the one who is refused.
  const auto known = unanswered_.find(peer);
  const auto waiting = known == unanswered_.end() ? std::size_t{0} : known->second.requests;
  const auto of_client = unanswered_of_.find(who.client);
  const auto waiting_of_client =
    of_client == unanswered_of_.end() ? std::size_t{0} : of_client->second;
  if (waiting >= options_.requests_waiting_max || waiting_of_client >= limits.requests
      || unanswered_all_ >= options_.requests_waiting_all_max) {
    metrics_->frames_rejected.over_limit.add();
    return say(peer, envelope->request_id,
               wire::request_failed{
                 errc::queue_full,
                 std::to_string(waiting) + " requests of yours wait for the scheduler, "
                   + std::to_string(waiting_of_client) + " of client " + who.client + ", "
                   + std::to_string(unanswered_all_) + " in all; allowed are "
                   + std::to_string(options_.requests_waiting_max) + ", "
                   + std::to_string(limits.requests) + " and "
                   + std::to_string(options_.requests_waiting_all_max) + "; ask again later",
                 {},
                 {}});
  }
  auto& count = unanswered_[peer];
  ++count.requests;
  count.client = who.client;
  ++unanswered_of_[who.client];
  ++unanswered_all_;
  to_.request({peer, std::make_shared<const wire::request_envelope>(std::move(*envelope)),
               who.client, limits, who.owner, who.operates});
}

void frontend::loop::count_refused(errc code) {
  if (code == errc::frame_too_large)
    metrics_->frames_rejected.too_large.add();
  else
    metrics_->frames_rejected.malformed.add();
}

// -- out ----------------------------------------------------------------------

void frontend::loop::say_waiting() {
  std::vector<outgoing> todo;
  {
    const std::scoped_lock lock{mutex_};
    todo.swap(waiting_);
  }
  for (const auto& out : todo) {
    if (out.what.request_id != 0)
      note_answered(out.peer, 1); // every request is answered exactly once
    say(out.peer, out.what.request_id, out.what.body);
  }
}

void frontend::loop::note_answered(const std::string& peer, std::size_t most) {
  const auto it = unanswered_.find(peer);
  if (it == unanswered_.end())
    return;
  const auto count = std::min(most, it->second.requests);
  unanswered_all_ -= count;
  if (const auto of = unanswered_of_.find(it->second.client);
      of != unanswered_of_.end() && (of->second -= std::min(count, of->second)) == 0)
    unanswered_of_.erase(of);
  if ((it->second.requests -= count) == 0)
    unanswered_.erase(it);
}

void frontend::loop::say(const std::string& peer, std::uint64_t request_id,
                         const wire::event& what) {
  const auto bytes = wire::encode(request_id, what);
  try {
    const auto flags = zmq::send_flags::sndmore | zmq::send_flags::dontwait;
    if (router_.send(zmq::buffer(peer), flags)) {
      (void)router_.send(zmq::buffer(bytes), zmq::send_flags::dontwait);
      if (!deaf_.empty())
        deaf_.erase(peer);
      return;
    }
    if (!deaf_.insert(peer).second)
      return; // said before
    spdlog::warn("a controller does not read: {} messages wait for it, what follows is dropped",
                 options_.messages_per_peer_max);
  } catch (const zmq::error_t&) { // EHOSTUNREACH: it has gone; its results wait in the book
  }
  note_answered(peer, unanswered_all_); // what it asked may never be answered
  if (to_.gone)
    to_.gone(peer);
}

// -- the public class ---------------------------------------------------------

frontend::frontend(std::unique_ptr<loop> l) noexcept : loop_(std::move(l)) {}
frontend::~frontend() = default;

result<std::shared_ptr<frontend>> frontend::open(frontend_options options,
                                                 std::shared_ptr<scheduler_metrics> metrics) {
  auto made = std::make_unique<loop>(std::move(options), std::move(metrics));
  if (auto bound = made->bind(); !bound)
    return fail(bound);
  return std::shared_ptr<frontend>{new frontend{std::move(made)}};
}

void frontend::start(handlers to) {
  loop_->start(std::move(to));
}

void frontend::stop() {
  loop_->stop();
}

const std::string& frontend::endpoint() const noexcept {
  return loop_->endpoint();
}

void frontend::send(const std::string& peer, wire::event_envelope what) {
  loop_->post(peer, std::move(what));
}

} // namespace rollcast
