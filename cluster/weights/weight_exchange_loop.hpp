#pragma once

#include "cluster/security/curve_socket.hpp"
#include "cluster/security/doorkeeper.hpp"
#include "cluster/transport/wake_fd.hpp"
#include "cluster/weights/weight_exchange.hpp"
#include "cluster/weights/weight_frame.hpp"
#include "engine/memory/heap.hpp"

#include <zmq.hpp>

#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

namespace rollcast {

/// Inside of `weight_exchange`: what its thread owns. Split over weight_exchange.cpp (the loop),
/// weight_exchange_puller.cpp (what we want) and weight_exchange_holder.cpp (what peers want).
/// Private to these files.
class weight_exchange::loop {
public:
  using clock = std::chrono::steady_clock;

  struct offer_command {
    std::uint64_t update;
    std::shared_ptr<const weight_cargo> cargo;
  };
  struct withdraw_command {
    std::uint64_t update;
  };
  struct pull_command {
    std::uint64_t update;
    std::string endpoint;
    std::shared_ptr<weight_cargo> cargo;
    progress_function progress;
    done_function done;
  };
  struct redirect_command {
    std::uint64_t update;
    std::string endpoint;
  };
  struct cancel_command {
    std::uint64_t update;
  };
  struct stop_command {};
  using command = std::variant<offer_command, withdraw_command, pull_command, redirect_command,
                               cancel_command, stop_command>;

  explicit loop(weight_exchange_options options);
  ~loop();
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  result<void> bind();
  void start();
  void post(command what);
  const std::string& endpoint() const noexcept { return endpoint_; }

  counters counts;

private:
  /// An update that comes here.
  struct pull {
    std::string endpoint;
    std::shared_ptr<weight_cargo> cargo;
    progress_function progress;
    done_function done;
    zmq::socket_t socket;
    std::uint64_t attempt = 0;           ///< Answers to earlier ones are old news.
    std::set<std::uint32_t> asked;       ///< In flight.
    std::uint32_t next = 0;              ///< Slices before it were looked at in this attempt.
    std::deque<std::uint32_t> forgotten; ///< Slices before `next` that lack again.
    clock::time_point deadline;
    clock::time_point again = clock::time_point::max(); ///< When a refused attempt is repeated.
    std::optional<error> refused;                       ///< By an upstream that knows no update.
  };
  /// A peer that waits for a slice, and what its answer must repeat.
  struct parked {
    std::string peer;
    std::uint64_t attempt = 0;
    friend auto operator<=>(const parked&, const parked&) = default;
  };
  /// An update that goes out.
  struct offering {
    std::shared_ptr<const weight_cargo> cargo;
    std::map<std::uint32_t, std::set<parked>> waiting; ///< By slice.
    std::uint64_t since = 0;                           ///< Ascends from offer to offer.
  };

  void run();
  void obey();
  void expire();
  /// Has malloc keep the memory of slices while there are pulls, and gives it back some time later.
  void keep_memory();
  std::chrono::milliseconds until_next_deadline() const;

  void on(offer_command& c);
  void on(const withdraw_command& c);
  void on(pull_command& c);
  void on(redirect_command& c);
  void on(const cancel_command& c);
  void on(const stop_command&) { running_ = false; }

  // The puller's side.
  result<void> connect(pull& p);
  void begin_attempt(pull& p);
  void hear_upstream(std::uint64_t update);
  void hear_frame(std::uint64_t update, pull& p, const weight_frame& frame,
                  const zmq::message_t& payload);
  void take_slice(std::uint64_t update, pull& p, std::uint32_t slice,
                  const zmq::message_t& payload);
  void take_refusal(std::uint64_t update, pull& p, const weight_frame& frame,
                    const zmq::message_t& payload);
  void want_slices(std::uint64_t update, pull& p);
  std::optional<std::uint32_t> next_lacking(pull& p) const;
  void expire_pulls(clock::time_point now);
  void end_pull(std::uint64_t update, result<void> how);
  static bool tell_upstream(pull& p, const weight_frame& frame);
  clock::time_point soon() const { return clock::now() + options_.idle_ms_max; }

  // The holder's side.
  void hear_pullers();
  void hear_puller(const std::string& name, const zmq::message_t& body);
  void hear_want(const std::string& name, const weight_frame& frame);
  void park(const std::string& name, const weight_frame& frame, offering& o);
  void send_slice(const std::string& name, const weight_frame& answer, kept_bytes bytes);
  void send_parked(std::uint64_t update, std::uint32_t slice);
  void drop_parked(const std::string& name);
  void drop_offer(std::uint64_t update, std::string_view why);
  void tell_waiting(clock::time_point now);
  void refuse(const std::string& name, const weight_frame& to, std::uint32_t slice, errc code,
              std::string_view why);
  bool tell_puller(const std::string& name, const weight_frame& frame, zmq::message_t* payload);

  weight_exchange_options options_;
  std::string endpoint_;
  wake_fd wake_;
  std::mutex mutex_;
  std::vector<command> commands_; ///< Guarded by `mutex_`.

  // Owned by the thread. The context comes first, so that it outlives the sockets.
  zmq::context_t context_{1};
  zmq::socket_t router_;
  curve_listener listener_;
  std::unique_ptr<doorkeeper> door_; ///< Null without keys; ends before the socket.
  std::map<std::uint64_t, pull> pulls_;
  std::uint64_t last_attempt_ = 0;
  std::map<std::uint64_t, offering> offers_;
  std::uint64_t last_offer_ = 0;
  std::deque<std::uint64_t> withdrawn_;          ///< The latest, to tell them from unknown ones.
  std::map<std::string, std::size_t> parked_by_; ///< Requests by peer.
  std::optional<kept_heap> kept_; ///< While there are pulls: ZeroMQ allocates each slice.
  clock::time_point tell_at_ = clock::time_point::max(); ///< When those who wait hear so.
  bool running_ = true;
  std::thread thread_;
};

} // namespace rollcast
