#include "cluster/drafts/draft_link.hpp"

#include "cluster/security/curve_socket.hpp"
#include "cluster/transport/silent_peers.hpp"
#include "cluster/transport/wake_fd.hpp"

#include <zmq.hpp>

#include <chrono>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace rollcast {
namespace {

constexpr std::chrono::milliseconds refused_pause{50};

} // namespace

/// What the thread owns, and the two queues between it and the engine's thread.
class draft_link::loop {
public:
  using clock = std::chrono::steady_clock;

  explicit loop(draft_link_options options)
    : options_(std::move(options)), ledger_(options_.ledger) {}
  ~loop();
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  result<void> connect();
  void start() {
    thread_ = std::thread{[this] { run(); }};
  }

  enum class note_kind : std::uint8_t { follow, wrote, leave, lost };
  /// What the engine's thread has to tell. Its tokens are in the outbox, `count` from `offset` on.
  struct note {
    note_kind kind{};
    group_id group;
    draft_group name;
    response_id response;
    std::uint32_t position = 0;
    std::size_t offset = 0;
    std::size_t count = 0;
    clock::time_point at{};
  };
  void post(note what, std::span<const token_id> tokens);
  void collect(std::size_t tokens_max, std::vector<heard_tokens>& out);

  counters counts;

private:
  struct outbox {
    std::vector<note> notes;
    std::vector<token_id> tokens;
    void clear() {
      notes.clear();
      tokens.clear();
    }
  };

  void run();
  void obey();
  void hear();
  bool send(const draft_frame& frame);
  bool hand(heard_tokens heard);
  void show_counts();

  draft_link_options options_;
  draft_ledger ledger_;
  zmq::context_t context_;
  zmq::socket_t socket_;
  std::uint64_t keys_version_ = 0; ///< Of the keys that it dialled with.
  wake_fd wake_;
  std::atomic<bool> looks_soon_{false}; ///< The thread turns within milliseconds.
  std::uint64_t rejected_ = 0;          ///< Frames that are none.
  clock::time_point refused_until_{}; ///< Nothing is sent before: ZeroMQ has just refused a frame.
  std::atomic<bool> stopping_{false};

  std::mutex out_mutex_;
  outbox out_;
  outbox taken_; ///< The thread's own, swapped with `out_`.

  std::mutex in_mutex_;
  std::deque<heard_tokens> in_;
  std::size_t in_tokens_ = 0;
  std::atomic<bool> in_any_{false}; ///< So that nothing is locked when nothing has come.

  std::thread thread_; ///< Last: it uses all of the above.
};

draft_link::loop::~loop() {
  stopping_ = true;
  wake_.ring();
  if (thread_.joinable())
    thread_.join();
}

result<void> draft_link::loop::connect() {
  try {
    socket_ = zmq::socket_t{context_, zmq::socket_type::dealer};
    socket_.set(zmq::sockopt::linger, 0);
    // Nothing is queued for a server that is away: it is sent once it is back.
    socket_.set(zmq::sockopt::immediate, true);
    socket_.set(zmq::sockopt::sndhwm, options_.frames_max);
    socket_.set(zmq::sockopt::rcvhwm, options_.frames_max);
    socket_.set(zmq::sockopt::maxmsgsize, std::int64_t{draft_frame_bytes_max});
    end_silent_connections(socket_, std::chrono::seconds{4});
    socket_.set(zmq::sockopt::reconnect_ivl, 100);
    socket_.set(zmq::sockopt::reconnect_ivl_max, 2'000);
    if (options_.keys)
      keys_version_ = options_.keys->keys_version();
    dial_within(socket_, options_.keys);
    socket_.connect(options_.server);
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config, "cannot connect to a draft server at '" + options_.server
                                    + "': " + e.what() + "; give tcp://host:port");
  }
  return {};
}

// -- the engine's thread ------------------------------------------------------

void draft_link::loop::post(note what, std::span<const token_id> tokens) {
  bool first = false;
  {
    const std::scoped_lock lock{out_mutex_};
    if (out_.tokens.size() + tokens.size() > options_.outbox_tokens_max) {
      ++counts.dropped;
      return;
    }
    first = out_.notes.empty();
    what.offset = out_.tokens.size();
    what.count = tokens.size();
    what.at = clock::now();
    out_.notes.push_back(what);
    out_.tokens.insert(out_.tokens.end(), tokens.begin(), tokens.end());
  }
  // While notes come at every step the thread looks by itself; ringing each time would cost more
  // than the notes do.
  if (first && !looks_soon_.load(std::memory_order_acquire))
    wake_.ring();
}

void draft_link::loop::collect(std::size_t tokens_max, std::vector<heard_tokens>& out) {
  out.clear();
  if (!in_any_.load(std::memory_order_acquire))
    return;
  const std::scoped_lock lock{in_mutex_};
  std::size_t taken = 0;
  while (!in_.empty() && taken < tokens_max) {
    taken += in_.front().tokens.size();
    out.push_back(std::move(in_.front()));
    in_.pop_front();
  }
  in_tokens_ -= taken;
  in_any_.store(!in_.empty(), std::memory_order_release);
}

// -- the link's thread --------------------------------------------------------

void draft_link::loop::run() {
  while (!stopping_) {
    // The old key opens for a while only; what is lost with the connection is told again.
    if (options_.keys && options_.keys->keys_version() != keys_version_)
      (void)connect(); // as it did before
    std::vector<zmq::pollitem_t> items{{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                       {nullptr, wake_.descriptor(), ZMQ_POLLIN, 0}};
    const bool refused = clock::now() < refused_until_;
    const bool soon = ledger_.waiting() && !refused;
    looks_soon_.store(soon, std::memory_order_release);
    const std::chrono::milliseconds pause{soon ? 5 : 50};
    try {
      zmq::poll(items, pause);
    } catch (const zmq::error_t&) { // interrupted by a signal: look at everything and poll again
    }
    if ((items[1].revents & ZMQ_POLLIN) != 0)
      wake_.silence();
    obey();
    if ((items[0].revents & ZMQ_POLLIN) != 0)
      hear();
    // A server that is away or does not read is tried again after a while, not at every note.
    const auto now = clock::now();
    if (now >= refused_until_
        && !ledger_.flush(now, [this](const draft_frame& frame) { return send(frame); }))
      refused_until_ = now + refused_pause;
    show_counts();
  }
}

void draft_link::loop::obey() {
  {
    const std::scoped_lock lock{out_mutex_};
    std::swap(out_, taken_);
  }
  for (const auto& n : taken_.notes) {
    const auto tokens = std::span{taken_.tokens}.subspan(n.offset, n.count);
    switch (n.kind) {
      case note_kind::follow: ledger_.follow(n.group, n.name, n.response, tokens, n.at); break;
      case note_kind::wrote: ledger_.wrote(n.name, n.response, n.position, tokens, n.at); break;
      case note_kind::leave: ledger_.leave(n.name, n.response, n.at); break;
      case note_kind::lost: ledger_.lost(n.name, n.response, n.position, n.at); break;
    }
  }
  taken_.clear();
}

void draft_link::loop::hear() {
  zmq::message_t body;
  // So many in a row, then the engine's notes have their turn.
  for (int frames = 0; frames < 256; ++frames) {
    try {
      if (!socket_.recv(body, zmq::recv_flags::dontwait))
        return;
    } catch (const zmq::error_t&) { // interrupted by a signal: the next turn reads on
      return;
    }
    const auto frame = decode_draft_frame({static_cast<std::byte*>(body.data()), body.size()});
    if (!frame || body.more()) {
      ++rejected_;
      continue;
    }
    ledger_.take(
      *frame, clock::now(), [this](const draft_frame& reply) { return send(reply); },
      [this](heard_tokens heard) { return hand(std::move(heard)); });
  }
}

bool draft_link::loop::send(const draft_frame& frame) {
  try {
    return socket_.send(zmq::buffer(encode(frame)), zmq::send_flags::dontwait).has_value();
  } catch (const zmq::error_t&) { // the context ends
    return false;
  }
}

bool draft_link::loop::hand(heard_tokens heard) {
  const std::scoped_lock lock{in_mutex_};
  if (in_tokens_ + heard.tokens.size() > options_.inbox_tokens_max) {
    ++counts.dropped;
    return false;
  }
  in_tokens_ += heard.tokens.size();
  in_.push_back(std::move(heard));
  in_any_.store(true, std::memory_order_release);
  return true;
}

void draft_link::loop::show_counts() {
  const auto& f = ledger_.figures();
  counts.written_tokens = f.written_tokens;
  counts.heard_tokens = f.heard_tokens;
  counts.gaps_repaired = f.gaps_repaired;
  counts.rejected = rejected_ + f.rejected;
}

// -- the public class ---------------------------------------------------------

draft_link::draft_link(std::unique_ptr<loop> l) noexcept : loop_(std::move(l)) {}
draft_link::~draft_link() = default;

result<std::unique_ptr<draft_link>> draft_link::open(draft_link_options options) {
  auto made = std::make_unique<loop>(std::move(options));
  if (auto connected = made->connect(); !connected)
    return fail(connected);
  made->start();
  return std::unique_ptr<draft_link>{new draft_link{std::move(made)}};
}

void draft_link::follow(group_id group, draft_group name, response_id response,
                        std::span<const token_id> tokens) {
  loop_->post({.kind = loop::note_kind::follow, .group = group, .name = name, .response = response},
              tokens);
}

void draft_link::wrote(draft_group name, response_id response, std::uint32_t position,
                       std::span<const token_id> tokens) {
  loop_->post({.kind = loop::note_kind::wrote,
               .group = {},
               .name = name,
               .response = response,
               .position = position},
              tokens);
}

void draft_link::leave(draft_group name, response_id response) {
  loop_->post({.kind = loop::note_kind::leave, .group = {}, .name = name, .response = response},
              {});
}

void draft_link::lost(draft_group name, response_id response, std::uint32_t position) {
  loop_->post({.kind = loop::note_kind::lost,
               .group = {},
               .name = name,
               .response = response,
               .position = position},
              {});
}

void draft_link::collect(std::size_t tokens_max, std::vector<heard_tokens>& out) {
  loop_->collect(tokens_max, out);
}

const draft_link::counters& draft_link::counts() const noexcept {
  return loop_->counts;
}

} // namespace rollcast
