#pragma once

#include "actors/protocol.hpp"
#include "engine/base/prng.hpp"

#include <caf/all.hpp>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <string>

namespace rollcast::sim {

using sim_time = caf::actor_clock::time_point;

/// What an actor sees of one behind a connection: whatever it is sent goes into the connection.
class far_actor final : public caf::actor_proxy {
public:
  using out_function = std::function<void(caf::message_id, caf::message)>;

  far_actor(caf::actor_config& cfg, out_function out)
    : caf::actor_proxy(cfg), out_(std::move(out)) {}
  void enqueue(caf::mailbox_element_ptr what, caf::execution_unit*) override {
    if (out_)
      out_(what->mid, what->move_content_to_message());
  }
  /// Whoever monitors it is told; nothing passes any more.
  void kill_proxy(caf::execution_unit* host, caf::error why) override {
    out_ = nullptr;
    cleanup(std::move(why), host);
  }

private:
  out_function out_;
};

/// One TCP connection between the scheduler and a worker, as CAF's I/O makes it look: messages of
/// one direction keep their order; once it is cut, a part of what is on its way still comes, and
/// then each side is told `down`, at once or when its heartbeat times out.
class connection {
public:
  enum class side : std::uint8_t { scheduler, worker };

  /// @param life  Names the worker's process.
  connection(caf::actor_system& system, const scheduler_actor& scheduler,
             const decode_worker_actor& worker, std::uint32_t life);
  ~connection();
  std::uint32_t life() const noexcept { return life_; }
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;

  /// The scheduler, as the worker sees it.
  registry_actor far_scheduler() const { return caf::actor_cast<registry_actor>(scheduler_.seen); }

  /// Breaks it. What is on its way is lost from some message on; each side is told at its time.
  void cut(prng& rng, sim_time scheduler_told, sim_time worker_told);
  /// That process is no more: it hears nothing, and nothing it said since counts.
  void forget(side whose);
  bool is_cut() const noexcept { return cut_; }
  /// Both sides know that it is broken.
  bool closed() const noexcept { return scheduler_.closed && worker_.closed; }

  /// Whether something can happen now at that side: a message arrives, or it is told `down`.
  bool can_deliver(side to, sim_time now) const;
  void deliver(side to);
  std::size_t on_its_way() const noexcept {
    return scheduler_.arriving.size() + worker_.arriving.size();
  }

  /// What no worker may ever say of a chunk: that it does not fit, though the policy placed it.
  const std::optional<std::string>& overfilled() const noexcept { return overfilled_; }

private:
  struct packet {
    caf::message_id mid;
    caf::message content;
  };
  struct end {
    caf::strong_actor_ptr self; ///< The real actor at this side.
    caf::strong_actor_ptr seen; ///< What the other side sees of it.
    std::deque<packet> arriving;
    std::optional<sim_time> told_at;
    bool closed = false;
  };
  end& at(side which) { return which == side::scheduler ? scheduler_ : worker_; }
  const end& at(side which) const { return which == side::scheduler ? scheduler_ : worker_; }
  void send(side to, caf::message_id mid, caf::message what);
  void look(side to, const caf::message& what);
  void close(end& told, end& other);

  std::uint32_t life_;
  end scheduler_;
  end worker_;
  bool cut_ = false;
  std::optional<std::string> overfilled_;
};

} // namespace rollcast::sim
