#include "actors/frontend.hpp"

#include "cluster/security/curve_socket.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "cluster/transport/silent_peers.hpp"
#include "cluster/transport/wake_fd.hpp"
#include "cluster/wire/codec.hpp"

#include <spdlog/spdlog.h>
#include <zmq.hpp>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>
#include <utility>
#include <vector>

namespace rollcast {
namespace {

/// The bytes of a message that ZeroMQ sends, and what they count for until it has.
struct parcel {
  std::string bytes;
  outbox::burden weight;
  std::atomic<bool> handed_over{false};
};

void end_parcel(void*, void* hint) {
  const std::unique_ptr<parcel> over{static_cast<parcel*>(hint)};
  (void)over->handed_over.load(std::memory_order_acquire);
}

/// ZeroMQ lets go on a thread of its own; `handed_over` says in our own terms, which a sanitizer
/// sees, that this comes after.
zmq::message_t parcel_of(std::string bytes, outbox::burden weight) {
  auto made = std::make_unique<parcel>();
  made->bytes = std::move(bytes);
  made->weight = std::move(weight);
  made->handed_over.store(true, std::memory_order_release);
  zmq::message_t message{made->bytes.data(), made->bytes.size(), end_parcel, made.get()};
  (void)made.release(); // now the message's
  return message;
}

} // namespace

class frontend::loop {
public:
  loop(frontend_options options, std::shared_ptr<scheduler_metrics> metrics)
    : options_(std::move(options)), metrics_(std::move(metrics)), out_(options_.out),
      refusals_(options_.refusals), unanswered_(options_.in), listener_(options_.keys) {}
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
  void run();
  void hear();
  void hear(const std::string& peer, const visitor& who, const zmq::message_t& body);
  void count_refused(errc code);
  void say_waiting();
  void warn_of_deaf(const std::string& why);
  void show_door();
  void refuse(const std::string& peer, std::uint64_t request_id, errc code, std::string message);
  enum class fate { sent, no_room, peer_gone };
  fate say(const std::string& peer, const wire::event_envelope& what, outbox::burden weight);

  frontend_options options_;
  std::shared_ptr<scheduler_metrics> metrics_;
  handlers to_;
  wake_fd wake_;
  outbox out_;
  outbox refusals_;                                ///< Only charged: they go to the socket at once.
  request_ledger unanswered_;                      ///< The thread's own.
  std::chrono::steady_clock::time_point warned_{}; ///< Of a peer that does not read.
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
    router_.set(zmq::sockopt::rcvhwm, 4); // whole messages, of any size, before anybody looks
    // A controller that vanished without a word is noticed, and its queue freed.
    end_silent_connections(router_, std::chrono::seconds{15});
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
  (void)out_.post(peer, std::move(what)); // what is dropped is seen by `say_waiting`
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
    refuse(name, 0, errc::frame_malformed,
           "message of " + std::to_string(parts) + " parts, an envelope is one part");
  }
}

void frontend::loop::hear(const std::string& peer, const visitor& who, const zmq::message_t& body) {
  const std::span<const std::byte> bytes{body.data<std::byte>(), body.size()};
  const auto limits = who.limits.value_or(options_.client);
  // Looked at first: decoding costs what the message has.
  if (const auto room = unanswered_.check(peer, who.client, body.size(), limits.requests); !room) {
    metrics_->frames_rejected.over_limit.add();
    return refuse(peer, wire::request_id_of(bytes), errc::queue_full, room.error().detail);
  }
  auto envelope = wire::decode_request(bytes);
  if (!envelope) {
    count_refused(envelope.error().code);
    return refuse(peer, wire::request_id_of(bytes), envelope.error().code, envelope.error().detail);
  }
  unanswered_.take_on(peer, who.client, envelope->request_id, body.size());
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

/// A peer that does not read what is there for it is pushed nothing more until it asks again.
void frontend::loop::say_waiting() {
  auto turn = out_.take();
  std::set<std::string> lost; // told of once a turn, however much was for them
  for (auto& letter : turn.letters) {
    if (letter.what.request_id != 0)
      unanswered_.answered(letter.peer, letter.what.request_id); // each exactly once
    const auto became = say(letter.peer, letter.what, std::move(letter.weight));
    if (became == fate::no_room)
      warn_of_deaf(std::to_string(options_.messages_per_peer_max) + " messages");
    if (became != fate::sent)
      lost.insert(letter.peer); // its results wait in the book
  }
  for (const auto& [peer, requests] : turn.dropped) {
    for (const auto request : requests)
      unanswered_.answered(peer, request);
    warn_of_deaf(std::to_string(out_.bytes_for(peer)) + " bytes");
    lost.insert(peer);
  }
  if (to_.gone)
    for (const auto& peer : lost)
      to_.gone(peer);
}

/// One line in ten seconds, of whomever: controllers must not fill the log.
void frontend::loop::warn_of_deaf(const std::string& why) {
  const auto now = std::chrono::steady_clock::now();
  if (now - warned_ <= std::chrono::seconds{10})
    return;
  warned_ = now;
  spdlog::warn("a controller does not read: {} wait for it, what follows is dropped", why);
}

/// The scheduler never heard of the request, so it need not hear that nobody reads the refusal.
void frontend::loop::refuse(const std::string& peer, std::uint64_t request_id, errc code,
                            std::string message) {
  const wire::event_envelope what{request_id,
                                  wire::request_failed{code, std::move(message), {}, {}}};
  if (auto weight = refusals_.charge(peer, bytes_of(what)))
    (void)say(peer, what, std::move(weight));
}

frontend::loop::fate frontend::loop::say(const std::string& peer, const wire::event_envelope& what,
                                         outbox::burden weight) {
  auto text = parcel_of(wire::encode(what.request_id, what.body), std::move(weight));
  try {
    const auto flags = zmq::send_flags::sndmore | zmq::send_flags::dontwait;
    if (!router_.send(zmq::buffer(peer), flags))
      return fate::no_room;
    (void)router_.send(std::move(text), zmq::send_flags::dontwait);
    return fate::sent;
  } catch (const zmq::error_t&) { // EHOSTUNREACH
    return fate::peer_gone;
  }
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
