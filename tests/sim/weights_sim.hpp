#pragma once

#include "cluster/weights/update_machine.hpp"
#include "engine/base/prng.hpp"

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace rollcast::weights::sim {

/// The tensors of a toy model: enough for changes that overlap and changes that do not.
using tensors = std::array<std::uint64_t, 4>;
inline content_hash hash_of_all(const tensors& all) {
  return hash_bytes(std::as_bytes(std::span{all}));
}
/// Of each tensor, a new value or none.
using changes = std::array<std::optional<std::uint64_t>, 4>;

/// Chances a tick, of 1000 each.
struct weight_faults {
  std::uint32_t crash = 0;      ///< Dies, and comes back from its disk.
  std::uint32_t false_loss = 0; ///< Is declared lost, works on for a while and registers again.
  std::uint32_t stuck = 0;      ///< A prepare or flip that never answers.
  std::uint32_t slow = 0;       ///< A prepare that takes too long, with signs of life.
  std::uint32_t upstream = 0;   ///< A pull that fails though the upstream lives.
  std::uint32_t replay = 0;     ///< News that comes again, much later.
  std::uint32_t odd_base = 0;   ///< A worker that comes back with another checkpoint.
  std::uint32_t bad = 0;        ///< An update with a NaN, or committed with a wrong hash.
  std::uint32_t silent = 0;     ///< A controller that never commits.
  std::uint32_t extinct = 0;    ///< All that serve die together.
  std::uint32_t pause = 0;      ///< A controller that pauses serving for a while.
  std::uint32_t restart = 0; ///< The scheduler restarts: it knows what it served, has no tensors.
  std::uint32_t delay_ticks_max = 0;
};

struct weight_counters {
  std::uint64_t committed = 0, aborted = 0, rolled_back = 0, fed = 0, expelled = 0, for_good = 0,
                redirected = 0, stale_news = 0, chunks = 0, spanning = 0, outdated = 0, expired = 0,
                refused_commands = 0, deserted = 0, paused_out = 0, restarts = 0, left_aside = 0;
};

/// A cluster in one thread that drives the real machine: workers with real (small) weights, a
/// scheduler that places chunks of batches, controllers, a network that delays, reorders and
/// repeats news, and kills. `step` returns what was found to be unsafe, or nothing.
class weights_sim {
public:
  weights_sim(std::uint64_t seed, std::uint32_t workers, const weight_faults& faults);

  /// One tick.
  std::string step();
  /// No more faults, odd checkpoints or commands from here on.
  void calm();
  /// Whether all processes serve one epoch, are routable, and nothing is open.
  bool settled() const;
  /// Sends a complete update that nothing hinders. @pre settled
  std::uint64_t publish();
  const weight_counters& counters() const { return counters_; }
  /// Why the latest worker was expelled.
  const std::string& latest_expulsion() const { return latest_expulsion_; }
  const update_machine& machine() const { return machine_; }

private:
  struct pull {
    prepare what;
    tensors content{};
    bool complete = false; ///< Nothing of `content` was there before.
    bool non_finite = false;
    std::uint64_t done_at = 0;
    std::uint64_t beat_at = 0;
    bool stuck = false;
    bool blocked = false; ///< It waits for another upstream.
    bool ready = false;
  };
  struct chunk_order {
    std::uint64_t chunk = 0;
    std::uint64_t attempt = 0;
    std::uint64_t epoch = 0;
    std::uint64_t done_at = 0;
  };
  /// One machine: its process may die and come back, its incarnations have ids.
  struct process {
    std::string host;
    tensors disk{};
    std::optional<tensors> base; ///< What it was started from, while it keeps that.
    bool admitted = false;
    bool covered = false; ///< Nothing that it serves is of `base`.
    tensors serves{};
    std::uint64_t epoch = 1;
    std::optional<std::pair<std::uint64_t, tensors>> kept;
    std::optional<pull> second;
    std::vector<chunk_order> running;
    worker_id id;    ///< None while it registers.
    worker_id known; ///< The latest id that the scheduler gave it.
    std::uint64_t hello = 0;
    std::uint64_t life = 0;     ///< Counts restarts, so that a dead process's orders are not taken.
    std::uint64_t up_at = 0;    ///< Down until then.
    std::uint64_t fifo = 0;     ///< When the latest order to it arrives.
    std::set<update_id> orders; ///< To prepare, of this life.
  };
  struct batch {
    std::optional<std::uint64_t> required;
    std::uint32_t chunks = 0; ///< Not finished.
    bool open = false;
  };
  struct chunk {
    std::uint64_t batch = 0;
    std::uint64_t attempt = 0;
    std::uint32_t edges = 1; ///< Chunks of the response that are left.
    std::optional<worker_id> holder;
    std::set<std::uint64_t> epochs; ///< That its tokens were made under.
  };
  struct content {
    tensors value{};
    changes sent{}; ///< Everything sent up to it.
  };
  struct sending {
    update_id number;
    update_spec spec;
    tensors value{};
    changes sent{};
    bool bad = false;
    bool wrong_hash = false;
    bool silent = false;
    std::uint32_t parts = 0;
  };

  bool happens(std::uint32_t per_mille) { return rng_.below(1000) < per_mille; }
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + rng_.below(high - low + 1);
  }
  void at(std::uint64_t tick, std::function<void()> what) {
    events_.emplace(tick, std::move(what));
  }
  void say(const news& what);
  void order(worker_id to, std::function<void(process&)> what);
  void wrong(const std::string& what);

  // The shell around the machine: the scheduler.
  void tell(const news& what);
  void carry_out();
  void take(const prepare& d);
  void take(const redirect& d);
  void take(const cancel& d);
  void take(const hold& d);
  void take(const release& d);
  void take(const flip& d);
  void take(const expel& d);
  void take(const admit& d);
  void take(const ended& d);
  void take(const arm& d);
  void lost(worker_id id, bool tells);
  void say_quiet();
  void watch_pause();
  void restart_scheduler();
  /// After a restart a worker may be left aside that only a complete update can help.
  void heal();
  bool runs() const;
  bool is_open() const;
  void open_batches();
  void place();
  void finished(worker_id from, const chunk_order& done, std::uint64_t epoch, tensors real);
  void end_batch(std::uint64_t id);
  void end_outdated(std::uint64_t epoch);

  // Controllers.
  void command();
  void send_parts();
  void begin(bool complete = false);

  // Workers.
  process* who(worker_id id);
  void work(std::size_t index);
  void pull_on(process& p);
  void register_again(std::size_t index);
  void registered(std::size_t index, std::uint64_t hello, const worker_joined& as);
  void restart(std::size_t index, std::uint64_t ticks);
  void injure(std::size_t index);

  void check();

  prng rng_;
  weight_faults faults_;
  update_machine machine_;
  std::vector<process> processes_;
  std::map<worker_id, std::size_t> incarnations_;
  std::multimap<std::uint64_t, std::function<void()>> events_;
  std::uint64_t now_ = 0;
  std::string wrong_;
  std::string latest_expulsion_;
  weight_counters counters_;

  tensors base_{};
  std::map<std::uint64_t, content> truth_; ///< By epoch: what it holds, from its first flip on.
  std::optional<sending> sending_;
  content next_;                 ///< Of the update being distributed.
  std::uint64_t started_at_ = 0; ///< When the update in work was committed by its controller.
  update_id watched_;
  std::set<std::uint64_t> promised_;
  std::uint64_t generation_ = 0;  ///< Of the scheduler.
  std::uint64_t deserted_at_ = 0; ///< An update waits, and nobody serves, since then; 0: not so.
  std::uint64_t stuck_at_ = 0;    ///< One waits for batches that a pause keeps from ending.
  std::uint64_t aside_at_ = 0;    ///< In the calm, somebody is not routable.
  std::uint64_t paused_until_ = 0;

  std::set<worker_id> routable_;
  std::optional<hold> held_;
  std::map<std::uint64_t, batch> batches_;
  std::map<std::uint64_t, chunk> chunks_;
  std::uint64_t last_batch_ = 0;
  std::uint64_t last_chunk_ = 0;
  worker_id last_worker_;
  bool calm_ = false;
};

} // namespace rollcast::weights::sim
