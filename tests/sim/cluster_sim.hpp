#pragma once

#include "cluster/policy/scheduler_policy.hpp"
#include "engine/base/prng.hpp"
#include "tests/sim/ledger.hpp"
#include "tests/sim/pretend_worker.hpp"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace rollcast::sim {

/// Chances out of a thousand: per tick and worker, or per message.
struct fault_plan {
  std::uint32_t delay_ticks_max = 0; ///< Each message waits 0..max ticks; events may overtake.
  std::uint32_t replay = 0;          ///< A message is delivered twice, the copy much later.
  std::uint32_t message_lost = 0;    ///< A message is lost; the connection breaks with it.
  std::uint32_t crash = 0;           ///< A worker dies and comes back under a new id.
  std::uint32_t false_loss = 0;      ///< A live worker is declared lost and goes on for a while.
  std::uint32_t drain = 0;           ///< A worker drains, cuts what it runs, then leaves.
  std::uint32_t kv_lost = 0;         ///< A worker loses parked KV.
  std::uint32_t kv_dropped = 0;      ///< Per chunk: the worker does not keep the KV.
  std::uint32_t chunk_failed = 0;    ///< Per order: the worker cannot start it.
  std::uint32_t pull_failed = 0;     ///< Per pull: the peer cannot be reached.
  std::uint32_t spill_failed = 0;    ///< Per order: the worker cannot keep the KV.
  std::uint32_t priced = 0;          ///< A worker measures other prices.
  std::uint32_t paced = 0;           ///< A worker gets slower or faster.
  std::uint32_t cancel = 0;          ///< Per tick: somebody cancels a response.
};

struct workload {
  std::uint32_t groups = 6;
  std::uint32_t group_size = 6;
  std::uint32_t workers = 4;
  std::uint32_t static_percent = 0; ///< Share of groups run in mode static_.
  policy::policy_limits limits;
};

/// A whole cluster in one thread: the real policy, pretend workers, and a network. Everything
/// random comes from one seed. Decisions for one worker arrive in order, as TCP gives it; all else
/// may be late, doubled, lost or out of order.
class cluster_sim {
public:
  cluster_sim(std::uint64_t seed, const workload& load, const fault_plan& faults);

  /// Ends the faults; from here on the cluster owes progress.
  void calm() { faults_ = {}; }
  /// Advances one tick. @returns what went wrong, empty if nothing did.
  std::string step();
  bool all_ended() const;
  std::size_t finished() const;
  const policy::scheduler_policy& policy() const { return policy_; }
  /// A number that two runs share only if they decided alike, in the same order.
  std::uint64_t trace() const { return trace_; }

private:
  using order = std::variant<policy::release, policy::spill, policy::cut, work_order>;
  struct incarnation {
    pretend_worker worker;
    std::uint64_t last_order_due = 0;
    std::uint64_t gone_at = 0; ///< Declared lost or dead: takes no orders; 0 while well.
    bool crashed = false;
  };

  bool happens(std::uint32_t thousandth) { return rng_.below(1000) < thousandth; }
  std::uint32_t between(std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(rng_.below(high - low + 1));
  }
  void join();
  void draw_group(std::uint32_t index, const workload& load);
  void lose(incarnation& w, bool crashed);
  void inject();
  bool imports(const work_order& o);
  void run_workers();
  std::string deliver_orders();
  std::string deliver_events();
  std::string take(const policy::event& e);
  std::string plan();
  std::string decide(const policy::decision& d);
  std::string close_groups();
  void post(const policy::event& e, std::uint32_t after = 0);
  void post_from(incarnation& w, const policy::event& e);
  void send(worker_id to, const order& what);

  prng rng_;
  fault_plan faults_;
  policy::scheduler_policy policy_;
  ledger book_;
  std::uint64_t now_ = 0;
  std::uint64_t last_worker_ = 0;
  std::uint64_t trace_ = 0;
  std::uint64_t next_join_ = 0;
  std::size_t wanted_workers_;
  std::multimap<std::uint64_t, policy::event> events_;               ///< By due tick.
  std::multimap<std::uint64_t, std::pair<worker_id, order>> orders_; ///< By due tick.
  std::map<worker_id, incarnation> workers_;
  std::set<std::pair<worker_id, response_id>> self_lost_; ///< KV that its worker lost by itself.
  std::string wrong_;                                     ///< Found while the workers ran.
  std::map<response_id, std::uint32_t> length_;
  std::map<group_id, std::vector<response_id>> groups_;
};

} // namespace rollcast::sim
