#pragma once

#include "actors/decode_worker.hpp"
#include "actors/durable_link.hpp"
#include "actors/scheduler.hpp"
#include "tests/sim/protocol_sim_client.hpp"
#include "tests/sim/protocol_sim_movers.hpp"
#include "tests/sim/protocol_sim_net.hpp"
#include "tests/support/journal_fold.hpp"

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace rollcast::sim {

/// Chances of each fault, of ten thousand steps.
struct protocol_faults {
  std::uint32_t kill = 0;       ///< A worker dies; its connection says so, or falls silent.
  std::uint32_t cut = 0;        ///< A connection breaks; both processes live.
  std::uint32_t stop = 0;       ///< A worker is stopped for a while, and goes on.
  std::uint32_t drain = 0;      ///< A worker leaves in peace, and another comes in its place.
  std::uint32_t disconnect = 0; ///< A controller loses its connection.
  std::uint32_t restart = 0;    ///< The scheduler dies and comes back.
  std::uint32_t disk = 0;       ///< The journal's disk takes nothing for a while.
  std::uint32_t transfer = 0;   ///< A transfer is cut or torn, of a thousand turns.
  std::uint32_t time = 300;     ///< Time passes although messages are on their way.
};

struct protocol_counters {
  std::uint64_t kills = 0;
  std::uint64_t cuts = 0;
  std::uint64_t stops = 0;
  std::uint64_t drains = 0;
  std::uint64_t disconnects = 0;
  std::uint64_t restarts = 0;
  std::uint64_t forgotten = 0; ///< Records that a restart lost, because they were not on disk.
  std::uint64_t registrations = 0;
  std::uint64_t refusals = 0; ///< Workers that the scheduler did not want.
};

/// A whole cluster in one thread: the real scheduler actor, real decode worker actors with real
/// engines over a device whose tokens are a hash, on CAF's test coordinator, which runs one message
/// of one actor at a time. The seed decides which mailbox is next, which message arrives, when
/// time passes, and who breaks when.
class protocol_sim {
public:
  protocol_sim(std::uint64_t seed, const protocol_faults& faults);
  ~protocol_sim();
  protocol_sim(const protocol_sim&) = delete;
  protocol_sim& operator=(const protocol_sim&) = delete;

  /// One event. @returns what is wrong, "" for nothing.
  std::string step();
  /// No fault from now on; what is dead comes back, what waits goes on.
  void calm();
  /// Everything that controllers wanted has ended, and every worker serves.
  bool settled() const;
  /// A last complete update takes along those that could not be fed.
  void publish();
  /// Whether anything is left of what has ended. @pre settled
  std::string leftovers();
  /// How long the network has been calm, in simulated time.
  std::chrono::seconds calm_for() const;
  /// Where it stands, for a message about a failure.
  std::string describe() const;

  const protocol_counters& counters() const noexcept { return counters_; }
  const data_network& data() const noexcept { return data_; }
  const std::vector<std::unique_ptr<sim_client>>& clients() const noexcept { return clients_; }
  const scheduler_state& scheduler_now() const;

private:
  struct config : caf::actor_system_config {
    config() {
      add_message_types<caf::id_block::rollcast>();
      set("scheduler.policy", caf::atom("testing"));
    }
  };
  /// A worker's process, through all its lives.
  struct process {
    std::size_t index = 0;
    std::uint32_t life = 0; ///< Of all processes; the pid.
    test::fake_device shape;
    std::uint64_t spill_bytes = 0;
    std::uint32_t slots = 0;
    bool alive = false;
    bool leaving = false;
    sim_time starts_at;     ///< While it is dead.
    sim_time stopped_until; ///< It gets no turn before.
    sim_time dials_at;
    std::shared_ptr<engine> device;
    std::shared_ptr<spill_store> spilled;
    std::shared_ptr<worker_pulse> pulse;
    std::unique_ptr<kv_mover> kv;
    std::unique_ptr<weight_mover> weights;
    decode_worker_actor actor;
    caf::resumable* job = nullptr;
    std::deque<std::function<void()>> aside; ///< Packing that a thread would do.
  };
  class link;

  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + rng_.below(high - low + 1);
  }
  bool happens(std::uint32_t per_ten_thousand) { return rng_.below(10'000) < per_ten_thousand; }
  sim_time now() const { return coordinator_.clock().now(); }
  sim_time after(std::uint64_t ms) { return now() + std::chrono::milliseconds{ms}; }
  bool has_turn(const process& p) { return p.alive && p.stopped_until <= now(); }

  // What may happen next: each does it if it can.
  bool run_job();
  bool deliver();
  bool run_aside();
  bool commit();
  bool serve_client();
  bool hear_client();
  void pass_time(bool idle);
  void keep_processes();
  void inject();
  bool nobody_serves() const;
  std::string check();
  std::string check(process& p);

  void start_scheduler();
  void restart_scheduler();
  void start(process& p);
  void end(process& p, bool silently, std::uint64_t down_ms);
  void dial(process& p);
  void cut(std::uint64_t scheduler_ms, std::uint64_t worker_ms, connection& c);
  void disconnect(sim_client& c);
  connection* connection_of(const process& p) const;
  void stop_actor(const caf::actor& who);
  void note_served(const wire::weights_served& s);
  void wrong(const std::string& what);

  prng rng_;
  protocol_faults faults_;
  protocol_counters counters_;
  bool calm_ = false;
  sim_time calm_since_;
  std::string wrong_;
  config config_;
  caf::actor_system system_;
  caf::scheduler::test_coordinator& coordinator_;
  data_network data_;
  sim_truth truth_;
  std::shared_ptr<controller_link> link_;
  /// The journal: what was written, and how much of it is on disk.
  test::record_log journal_;
  std::size_t durable_ = 0;
  std::uint64_t generation_ = 0;
  sim_time disk_full_until_;
  std::shared_ptr<durable_link> told_; ///< Tells what is on disk.
  scheduler_actor scheduler_;
  std::deque<std::function<void()>> aside_; ///< Hashing that a thread of it would do.
  std::vector<std::unique_ptr<process>> processes_;
  std::vector<std::unique_ptr<connection>> connections_; ///< Those that a side believes in.
  std::vector<std::unique_ptr<sim_client>> clients_;
  std::vector<std::deque<wire::event_envelope>> inbox_; ///< By client: on its way to it.
  std::vector<std::string> gone_; ///< Connections of controllers whose end is not noticed yet.
  bool with_static_ = false;
  std::uint32_t lives_ = 0;
  std::uint64_t steps_ = 0;
};

} // namespace rollcast::sim
