#include "cluster/wire/client.hpp"

#include "cluster/security/curve_socket.hpp"
#include "cluster/transport/silent_peers.hpp"
#include "cluster/wire/codec.hpp"

#include <zmq.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <span>
#include <utility>

namespace rollcast::wire {
namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// How long closing waits for what was sent last, such as an acknowledgement.
constexpr int linger_ms = 500;
/// How often it is looked whether the connection is still there.
constexpr milliseconds glance{100};

milliseconds left_until(clock::time_point deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - clock::now());
  return std::max(left, milliseconds{0});
}

} // namespace

/// The ZeroMQ socket, what was pushed while an answer was awaited, and the request numbers.
class controller_client::socket {
public:
  socket(std::string endpoint, milliseconds timeout, controller_keys keys)
    : endpoint_(std::move(endpoint)), timeout_(timeout), keys_(std::move(keys)), context_(1) {}
  ~socket() { stop_watching(); }
  socket(const socket&) = delete;
  socket& operator=(const socket&) = delete;

  /// Connects, with the keys that the files hold now. What may pass by itself is tried again by
  /// `look_at_keys`. ZeroMQ's exceptions pass through.
  result<void> open() {
    const auto seen = stamps(); // before they are read: what comes later is seen later
    stamps_.reset();
    looked_ = clock::now();
    const auto ok = open_with_files();
    if (ok || ok.error().code != errc::io_failed)
      stamps_ = seen;
    return ok;
  }

  result<void> open_with_files() {
    key_pair own;
    std::string server;
    if (keys_.any()) {
      if (keys_.server.empty() || keys_.key.empty())
        return fail(errc::bad_config, "--curve-server and --curve-key must be given together");
      auto loaded = load_keys(keys_.key);
      if (!loaded)
        return fail(loaded);
      auto known = load_public_key(keys_.server);
      if (!known)
        return fail(known);
      own = std::move(*loaded);
      server = std::move(*known);
    }
    zmq::socket_t dealer{context_, zmq::socket_type::dealer};
    dealer.set(zmq::sockopt::linger, linger_ms);
    dealer.set(zmq::sockopt::sndtimeo, static_cast<int>(timeout_.count()));
    dealer.set(zmq::sockopt::rcvhwm, 0); // what is dropped would be sent again
    // A connection that died silently is noticed and made anew.
    end_silent_connections(dealer, std::chrono::seconds{8});
    dealer.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(limits.message_bytes));
    // Asked for no longer than this, a scheduler that is back is found soon.
    dealer.set(zmq::sockopt::reconnect_ivl, 100);
    dealer.set(zmq::sockopt::reconnect_ivl_max, 1'000);
    if (keys_.any())
      dial_with(dealer, own, server);
    stop_watching();
    dealer_ = std::move(dealer);
    // The name of the one before is free only some time after its end.
    const auto name = "inproc://connections-" + std::to_string(++monitors_);
    if (zmq_socket_monitor(dealer_.handle(), name.c_str(),
                           ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED)
        != 0)
      return fail(errc::bad_config, "cannot watch the connection to \"" + endpoint_
                                      + "\": " + zmq_strerror(zmq_errno()));
    monitor_ = zmq::socket_t{context_, zmq::socket_type::pair};
    monitor_.set(zmq::sockopt::linger, 0);
    monitor_.connect(name);
    dealer_.connect(endpoint_);
    return {};
  }

  /// Looks what became of the connection.
  void watch() {
    try {
      zmq::message_t part; // an event is two parts: what happened, and where
      while (monitor_.recv(part, zmq::recv_flags::dontwait)) {
        if (!part.more() || part.size() < sizeof(std::uint16_t))
          continue;
        std::uint16_t what = 0;
        std::memcpy(&what, part.data(), sizeof(what));
        connected = what == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
        ++(connected ? made : lost);
      }
    } catch (const zmq::error_t&) { // nothing more to learn
    }
  }

  const std::string& endpoint() const noexcept { return endpoint_; }
  milliseconds timeout() const noexcept { return timeout_; }
  std::uint64_t next_request_id() noexcept { return ++last_request_id_; }

  result<void> send(std::uint64_t request_id, const request& body) {
    const auto bytes = encode(request_id, body);
    if (bytes.size() > limits.message_bytes)
      return fail(errc::frame_too_large,
                  "the request takes " + std::to_string(bytes.size()) + " bytes, at most "
                    + std::to_string(limits.message_bytes) + " are allowed: split the batch");
    const auto deadline = clock::now() + timeout_;
    do {
      try {
        if (dealer_.send(zmq::buffer(bytes), zmq::send_flags::none))
          return {};
      } catch (const zmq::error_t& e) {
        if (e.num() != EINTR)
          return fail(errc::peer_lost, endpoint_ + ": sending failed: " + e.what());
      }
    } while (clock::now() < deadline);
    return fail(errc::timed_out, silence(timeout_));
  }

  /// Receives one message. @returns nothing when `wait` is over or a signal came.
  result<std::optional<event_envelope>> receive(milliseconds wait) {
    look_at_keys();
    zmq::message_t message;
    try {
      dealer_.set(zmq::sockopt::rcvtimeo, static_cast<int>(wait.count()));
      if (!dealer_.recv(message, zmq::recv_flags::none))
        return std::nullopt;
      if (message.more()) {
        while (message.more())
          if (!dealer_.recv(message, zmq::recv_flags::none))
            break;
        return fail(errc::frame_malformed, endpoint_
                                             + " sent a message of several parts: it is "
                                               "no Rollcast scheduler");
      }
    } catch (const zmq::error_t& e) {
      if (e.num() == EINTR)
        return std::nullopt;
      return fail(errc::peer_lost, endpoint_ + ": receiving failed: " + e.what());
    }
    auto envelope = decode_event({static_cast<const std::byte*>(message.data()), message.size()});
    if (!envelope)
      return fail(envelope.error().code, endpoint_ + ": " + envelope.error().detail);
    return std::optional{std::move(*envelope)};
  }

  std::string silence(milliseconds waited) const {
    return "no answer from " + endpoint_ + " within " + std::to_string(waited.count())
           + " ms: is a Rollcast scheduler running there"
           + (keys_.any() ? ", and does it know our key?" : "?");
  }

  std::deque<event> pushed;
  bool connected = false;
  std::uint64_t made = 0; ///< Connections.
  std::uint64_t lost = 0;
  std::uint64_t told = 1; ///< Connections that the user knows of; the first one is no news.

private:
  using key_stamps = std::pair<file_stamp, file_stamp>;
  key_stamps stamps() const {
    return keys_.any() ? key_stamps{stamp_of(keys_.server), stamp_of(keys_.key)} : key_stamps{};
  }

  /// What is asked now is answered to nobody.
  void stop_watching() {
    if (dealer_.handle() == nullptr)
      return;
    watch();
    (void)zmq_socket_monitor(dealer_.handle(), nullptr, 0);
    monitor_.close();
    lost += std::exchange(connected, false) ? 1 : 0;
  }

  /// Connects anew with changed keys. Files that are wrong, or half written, are tried again when
  /// they change the next time, files that cannot be read a second later; until then the connection
  /// stays.
  void look_at_keys() {
    if (!keys_.any() || clock::now() - looked_ < std::chrono::seconds{1})
      return;
    looked_ = clock::now();
    if (stamps() == stamps_)
      return;
    try {
      (void)open();
    } catch (const zmq::error_t&) { // nothing that worked before is worse now
    }
  }

  std::string endpoint_;
  milliseconds timeout_;
  controller_keys keys_;
  std::optional<key_stamps> stamps_; ///< None: to be read again.
  clock::time_point looked_{};
  std::uint64_t last_request_id_ = 0;
  zmq::context_t context_;
  zmq::socket_t dealer_;
  zmq::socket_t monitor_;
  std::uint32_t monitors_ = 0; ///< Made so far.
};

controller_client::controller_client(std::unique_ptr<socket> opened) : socket_(std::move(opened)) {}
controller_client::~controller_client() = default;
controller_client::controller_client(controller_client&&) noexcept = default;
controller_client& controller_client::operator=(controller_client&&) noexcept = default;

result<controller_client> controller_client::connect(std::string endpoint, milliseconds timeout,
                                                     controller_keys keys) {
  std::unique_ptr<socket> opened;
  try {
    opened = std::make_unique<socket>(endpoint, timeout, std::move(keys));
    if (const auto ok = opened->open(); !ok)
      return fail(ok);
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config,
                "cannot connect to \"" + endpoint + "\": " + e.what() + "; give tcp://host:port");
  }
  controller_client client{std::move(opened)};
  if (const auto status = client.status(); !status)
    return fail(status);
  return client;
}

result<event> controller_client::ask(const request& body, milliseconds timeout) {
  const auto deadline = clock::now() + timeout;
  const auto id = socket_->next_request_id();
  socket_->watch();
  const auto lost = socket_->lost;
  const bool connected = socket_->connected;
  if (const auto sent = socket_->send(id, body); !sent)
    return fail(sent);
  do {
    auto got = socket_->receive(std::min(left_until(deadline), glance));
    if (!got)
      return fail(got);
    if (!*got) {
      socket_->watch();
      if (connected && socket_->lost > lost) // its answer goes to nobody
        return fail(errc::peer_lost,
                    socket_->endpoint() + ": the connection was lost while an answer was awaited");
      continue;
    }
    auto& [answered, answer] = **got;
    if (answered == id)
      return std::move(answer);
    // An answer to something older is either a refused acknowledgement or of no interest any more.
    if (answered == 0 || std::holds_alternative<request_failed>(answer))
      socket_->pushed.push_back(std::move(answer));
  } while (clock::now() < deadline);
  return fail(errc::timed_out, socket_->silence(timeout));
}

template <class Answer>
result<Answer> controller_client::ask_for(const request& body,
                                          std::optional<milliseconds> timeout) {
  auto got = ask(body, timeout.value_or(socket_->timeout()));
  if (!got)
    return fail(got);
  if (auto* answer = std::get_if<Answer>(&*got))
    return std::move(*answer);
  if (const auto* failed = std::get_if<request_failed>(&*got))
    return fail(failed->code, failed->detail.empty()
                                ? failed->message
                                : failed->message + " (" + failed->detail + ")");
  return fail(errc::frame_malformed, socket_->endpoint() + " gave an answer of the wrong kind");
}

result<void> controller_client::ask_done(const request& body) {
  if (const auto done = ask_for<request_done>(body); !done)
    return fail(done);
  return {};
}

result<batch_accepted> controller_client::submit(const submit_batch& batch) {
  return ask_for<batch_accepted>(batch);
}

result<batch_accepted> controller_client::resume(std::string_view batch_key,
                                                 std::uint64_t after_sequence) {
  return ask_for<batch_accepted>(resume_results{std::string{batch_key}, after_sequence});
}

result<void> controller_client::cancel(std::string_view batch_key) {
  return ask_done(cancel_batch{std::string{batch_key}});
}

result<status_report> controller_client::status() {
  return ask_for<status_report>(get_status{});
}

result<weights_begun> controller_client::begin_weights(const wire::begin_weights& how) {
  return ask_for<weights_begun>(how);
}

result<void> controller_client::send_bucket(const weight_bucket& bucket) {
  return ask_done(bucket);
}

result<weights_served> controller_client::commit_weights(const wire::commit_weights& what,
                                                         milliseconds timeout) {
  return ask_for<weights_served>(what, timeout);
}

result<weights_served> controller_client::load_weights(const wire::load_weights& what,
                                                       milliseconds timeout) {
  return ask_for<weights_served>(what, timeout);
}

result<weights_served> controller_client::rollback_weights(milliseconds timeout) {
  return ask_for<weights_served>(wire::rollback_weights{}, timeout);
}

result<void> controller_client::abort_weights(std::uint64_t epoch) {
  return ask_done(wire::abort_weights{epoch});
}

result<void> controller_client::pause_serving() {
  return ask_done(pause{});
}

result<void> controller_client::resume_serving() {
  return ask_done(wire::resume{});
}

result<scored> controller_client::score(const wire::score& what, milliseconds timeout) {
  auto got = ask_for<scored>(what, timeout);
  if (!got)
    return got;
  if (got->rows.size() != what.sequences.size())
    return fail(errc::frame_malformed, socket_->endpoint() + " scored "
                                         + std::to_string(got->rows.size()) + " sequences of "
                                         + std::to_string(what.sequences.size()));
  for (std::size_t at = 0; at < got->rows.size(); ++at) {
    const auto& asked = what.sequences[at];
    const auto wanted = asked.token_ids.size() - asked.prompt_tokens;
    if (got->rows[at].logprobs.size() != wanted)
      return fail(errc::frame_malformed, socket_->endpoint() + " gave "
                                           + std::to_string(got->rows[at].logprobs.size())
                                           + " log-probabilities for the " + std::to_string(wanted)
                                           + " scored tokens of sequence " + std::to_string(at));
  }
  return got;
}

bool controller_client::reconnected() {
  socket_->watch();
  if (socket_->made <= socket_->told)
    return false;
  socket_->told = socket_->made;
  return true;
}

result<void> controller_client::ack(std::string_view batch_key, std::uint64_t sequence) {
  return socket_->send(socket_->next_request_id(), ack_results{std::string{batch_key}, sequence});
}

result<event> controller_client::next_event(milliseconds timeout) {
  if (!socket_->pushed.empty()) {
    auto first = std::move(socket_->pushed.front());
    socket_->pushed.pop_front();
    return first;
  }
  const auto deadline = clock::now() + timeout;
  while (true) {
    auto got = socket_->receive(left_until(deadline));
    if (!got)
      return fail(got);
    if (!*got)
      return fail(errc::timed_out, "nothing from " + socket_->endpoint() + " within "
                                     + std::to_string(timeout.count()) + " ms");
    auto& [answered, body] = **got;
    if (answered == 0 || std::holds_alternative<request_failed>(body))
      return std::move(body);
  }
}

} // namespace rollcast::wire
