#include "actors/frontend.hpp"

#include "cluster/transport/wake_fd.hpp"
#include "cluster/wire/codec.hpp"

#include <spdlog/spdlog.h>
#include <zmq.hpp>

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
    : options_(std::move(options)), metrics_(std::move(metrics)) {}
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
  const std::string& endpoint() const noexcept { return endpoint_; }

private:
  struct outgoing {
    std::string peer;
    wire::event_envelope what;
  };

  void run();
  void hear();
  void hear(const std::string& peer, const zmq::message_t& body);
  void count_refused(errc code);
  void say_waiting();
  void note_answered(const std::string& peer);
  void say(const std::string& peer, std::uint64_t request_id, const wire::event& what);

  frontend_options options_;
  std::shared_ptr<scheduler_metrics> metrics_;
  handlers to_;
  std::string endpoint_;
  wake_fd wake_;
  std::mutex mutex_;
  std::vector<outgoing> waiting_;                           ///< Guarded by `mutex_`.
  std::unordered_map<std::string, std::size_t> unanswered_; ///< By peer; the thread's own.
  std::size_t unanswered_all_ = 0;
  std::set<std::string> deaf_; ///< Peers that the log was told of.
  std::atomic<bool> running_{true};
  zmq::context_t context_{1};
  zmq::socket_t router_;
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
    router_.bind(options_.bind);
    endpoint_ = router_.get(zmq::sockopt::last_endpoint);
  } catch (const zmq::error_t& e) {
    const auto code = e.num() == EADDRINUSE ? errc::address_in_use : errc::bad_config;
    return fail(code, "cannot listen for controllers on " + options_.bind + ": " + e.what()
                        + (code == errc::address_in_use ? "; stop what listens there or choose "
                                                          "another port"
                                                        : ""));
  }
  return {};
}

void frontend::loop::stop() {
  running_ = false;
  wake_.ring();
  if (thread_.joinable())
    thread_.join();
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
  }
  say_waiting();
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
    const auto name = peer.to_string();
    if (parts == 1) {
      hear(name, body);
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

void frontend::loop::hear(const std::string& peer, const zmq::message_t& body) {
  const std::span<const std::byte> bytes{body.data<std::byte>(), body.size()};
  auto envelope = wire::decode_request(bytes);
  if (!envelope) {
    count_refused(envelope.error().code);
    return say(peer, wire::request_id_of(bytes),
               wire::request_failed{envelope.error().code, envelope.error().detail, {}, {}});
  }
  // Counted by peer, so that one who asks too much is the one who is refused.
  auto& waiting = unanswered_[peer];
  if (waiting >= options_.requests_waiting_max
      || unanswered_all_ >= options_.requests_waiting_all_max)
    return say(
      peer, envelope->request_id,
      wire::request_failed{errc::queue_full,
                           std::to_string(waiting) + " requests of yours wait for the scheduler, "
                             + std::to_string(unanswered_all_) + " in all; ask again later",
                           {},
                           {}});
  ++waiting;
  ++unanswered_all_;
  to_.request({peer, std::make_shared<const wire::request_envelope>(std::move(*envelope))});
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
      note_answered(out.peer); // every request is answered exactly once
    say(out.peer, out.what.request_id, out.what.body);
  }
}

void frontend::loop::note_answered(const std::string& peer) {
  const auto it = unanswered_.find(peer);
  if (it == unanswered_.end())
    return;
  --unanswered_all_;
  if (--it->second == 0)
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
