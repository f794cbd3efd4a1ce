#pragma once

#include "cluster/security/curve_socket.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "cluster/transport/kv_exchange.hpp"
#include "cluster/transport/kv_frame.hpp"
#include "cluster/transport/wake_fd.hpp"

#include <zmq.hpp>

#include <deque>
#include <map>
#include <mutex>
#include <string_view>
#include <thread>
#include <variant>

namespace rollcast {

/// Inside of `kv_exchange`: what its thread owns. Split over kv_exchange.cpp (the loop),
/// kv_puller.cpp (what we want) and kv_holder.cpp (what peers want). Private to these files.
class kv_exchange::loop {
public:
  using clock = std::chrono::steady_clock;

  struct pull_command {
    std::uint64_t id;
    std::string endpoint;
    kv_request request;
    std::vector<token_id> tokens;
    done_function done;
  };
  struct cancel_command {
    std::uint64_t id;
  };
  struct answer_command {
    kv_ticket ticket;
    result<std::shared_ptr<const kv_image>> image;
  };
  struct carried_command {
    std::uint64_t id;
    kv_carrier::memory bytes;
    result<void> how;
  };
  struct stop_command {};
  using command =
    std::variant<pull_command, cancel_command, answer_command, carried_command, stop_command>;

  loop(kv_exchange_options options, serve_function serve);
  ~loop();
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  result<void> bind();
  void start();
  void post(command what) { put(*inbox_, std::move(what)); }
  const std::string& endpoint() const noexcept { return endpoint_; }
  std::uint64_t next_pull() noexcept { return ++last_pull_; }

  counters counts;

private:
  /// A worker that we pull from.
  struct peer {
    zmq::socket_t socket;
    std::size_t pulls = 0;
    clock::time_point heard{}; ///< When it last said anything, or was connected.
    clock::time_point idle_since{};
  };
  /// A transfer into this worker.
  struct pull {
    std::string endpoint;
    kv_request request;
    std::vector<token_id> tokens;
    done_function done;
    kv_image image;
    std::uint32_t part_bytes = 0;
    std::uint32_t parts = 0;
    std::uint32_t parts_wanted = 0; ///< Asked for so far, ascending.
    std::uint32_t parts_here = 0;   ///< Received so far; they arrive in the order asked for.
    std::uint64_t bytes = 0;        ///< What it counts for while it is started.
    bool started = false;           ///< Its holder was asked; until then it waits for its turn.
    worker_id carried_to = {};      ///< Us, while the carrier fetches it.
    clock::time_point carry_until;  ///< Then it is fetched without the carrier.
    clock::time_point deadline = clock::time_point::max();
  };
  /// A transfer out of this worker.
  struct offer {
    kv_request what;
    std::uint64_t bytes = 0; ///< What it counts for once it is asked for.
    bool asked = false;      ///< `serve` was called; until then it waits for its turn.
    bool given = false;      ///< To the carrier.
    std::shared_ptr<const kv_image> image; ///< Once `answer` has come.
    clock::time_point deadline; ///< While it waits its turn: when the puller is told so again.
  };

  struct inbox;

  static void put(inbox& into, command what);
  void run();
  void obey();
  void expire();
  void give_back_memory();
  std::chrono::milliseconds until_next_deadline() const;

  void on(pull_command& c);
  void on(const cancel_command& c);
  void on(const answer_command& c);
  void on(carried_command& c);
  /// Goes on without the carrier, in fresh memory: the old is the carrier's.
  void fall_back(std::uint64_t id, pull& p);
  void on(const stop_command&) { running_ = false; }

  // The puller's side.
  void start_pulls();
  void start_pull(std::uint64_t id, pull& p);
  result<void> check_shunned(const pull& p) const;
  result<void> connect(const std::string& name);
  void end_pulls_from(const std::string& name, const error& why);
  void hear_holder(const std::string& name);
  void take_manifest(std::uint64_t id, pull& p, const kv_frame& frame);
  void take_part(std::uint64_t id, pull& p, const kv_frame& frame, const zmq::message_t& payload);
  void want_parts(std::uint64_t id, pull& p);
  void carry(std::uint64_t id, pull& p);
  bool ask_to_carry(std::uint64_t id, pull& p);
  result<void> make_room(pull& p);
  void finish(std::uint64_t id, pull& p);
  void end_pull(std::uint64_t id, result<kv_image> how);
  bool tell_holder(const pull& p, const kv_frame& frame);
  clock::time_point soon() const { return clock::now() + options_.idle_ms_max; }

  // The holder's side.
  void hear_pullers();
  void hear_puller(const std::string& name, const zmq::message_t& body);
  void start_offers();
  void expire_offers(clock::time_point now);
  void end_offer(const kv_ticket& ticket);
  void send_part(const kv_ticket& to, offer& o, const kv_frame& frame);
  void refuse(const kv_ticket& to, errc code, std::string_view why);
  bool tell_puller(const std::string& name, const kv_frame& frame,
                   zmq::message_t* payload = nullptr);

  kv_exchange_options options_;
  serve_function serve_;
  std::string endpoint_;
  /// Where news for the thread is put. A carrier's may come when the exchange has gone.
  struct inbox {
    wake_fd wake;
    std::mutex mutex;
    std::vector<command> commands; ///< Guarded by `mutex`.
  };
  std::shared_ptr<inbox> inbox_ = std::make_shared<inbox>();
  std::atomic<std::uint64_t> last_pull_{0};

  // Owned by the thread. The context comes first, so that it outlives the sockets.
  zmq::context_t context_{1};
  zmq::socket_t router_;
  curve_listener listener_;
  std::unique_ptr<doorkeeper> door_; ///< Null without keys; ends before the socket.
  std::map<std::string, peer> peers_;
  /// Holders that cannot be reached from here, and when to try them again. By incarnation: another
  /// one may be behind the same endpoint.
  std::map<std::pair<std::string, worker_id>, clock::time_point> shunned_;
  std::map<std::uint64_t, pull> pulls_;
  std::deque<std::uint64_t> pulls_waiting_; ///< Oldest first; ended ones are skipped.
  std::size_t pulls_started_ = 0;
  /// Of the started, and of images that were handed on and are not destroyed yet.
  std::shared_ptr<std::atomic<std::uint64_t>> pulled_bytes_ =
    std::make_shared<std::atomic<std::uint64_t>>(0);
  std::map<kv_ticket, offer> offers_;
  std::deque<kv_ticket> offers_waiting_; ///< Oldest first; ended ones are skipped.
  std::uint64_t offered_bytes_ = 0;      ///< Of those asked for.
  clock::time_point give_back_at_{};     ///< When to look for memory that nobody wanted.
  bool running_ = true;
  std::thread thread_;
};

} // namespace rollcast
