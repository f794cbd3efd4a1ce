#pragma once

#include "cluster/collective/coordinator.hpp"
#include "cluster/collective/member.hpp"
#include "engine/base/prng.hpp"
#include "tests/support/pretend_fabric.hpp"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

/// A coordinator and members that exchange late messages, over a pretended fabric.
namespace rollcast::collective::sim {

/// Chances of one tick, in 1/1000.
struct faults {
  std::uint32_t kill = 0;    ///< A worker's process ends.
  std::uint32_t relink = 0;  ///< A worker loses its connection and comes back as another.
  std::uint32_t join = 0;    ///< Another worker comes.
  std::uint32_t stall = 0;   ///< The fabric does nothing for a while.
  std::uint32_t refuse = 0;  ///< The next group does not form.
  std::uint32_t no_give = 0; ///< Of a pull: its holder never gives.
  std::uint32_t corrupt = 0; ///< Of a pull: bytes arrive wrong, for a while.
  std::uint32_t delay_ticks_max = 3;
};

class collective_sim {
public:
  collective_sim(std::uint64_t seed, std::uint32_t workers, faults f);
  ~collective_sim();

  /// One tick of 20 ms. @returns what is wrong, or "".
  std::string step();
  /// No faults from here on; the fabric works. A worker joins, so that nothing is given up on.
  void calm();
  /// Nothing that was asked for is still to end, and an epoch of all is open.
  bool settled() const;
  void stop_asking() { asking_ = false; }

  const coordinator::counters& counts() const { return boss_.counts(); }
  std::uint64_t moved() const { return moved_; }
  std::uint64_t cast() const { return cast_; }
  std::uint64_t fell_back() const { return fell_back_; }

private:
  struct worker {
    worker_id id;
    std::string device;
    std::unique_ptr<communicator_maker> maker;
    std::unique_ptr<member> half;
    bool dead = false;
    std::uint64_t noticed = 0; ///< Tick at which the coordinator hears of its end; 0: it lives.
  };
  template <class T>
  struct late {
    std::uint64_t due;
    std::size_t worker;
    worker_id as; ///< The incarnation that it is of.
    T what;
  };
  struct asked {
    std::uint64_t until = 0; ///< Tick.
    std::uint32_t ended = 0;
    bool matters = true; ///< Its worker lives, so that its end must be heard.
    worker_id by;
  };

  instant now() const { return std::chrono::milliseconds{20} * static_cast<long>(tick_); }
  void add_worker(bool alone);
  void relink(std::size_t w);
  void break_something();
  void ask_for_kv();
  void ask_for_weights();
  void await_weights(std::uint64_t mine, std::uint64_t update, std::uint64_t epoch,
                     const weight_cargo& whole, worker& w);
  void deliver();
  void expect(std::uint64_t number, const worker& by, std::uint64_t within);
  void end(std::uint64_t number, bool good);
  template <class T>
  void send(std::deque<late<T>>& on, std::size_t w, T what);
  std::string check() const;

  prng random_;
  faults faults_;
  test::pretend_fabric fabric_;
  coordinator boss_;
  std::vector<worker> workers_; ///< Also those that have gone.
  std::deque<late<order>> orders_;
  std::deque<late<news>> news_;
  struct gift {
    worker_id puller;
    std::uint64_t pull = 0;
    std::shared_ptr<const kv_bytes> bytes;
  };
  std::deque<late<gift>> gifts_;
  using part = std::function<void(worker&)>; ///< Of a worker in an update.
  std::deque<late<part>> parts_;
  std::map<std::uint64_t, asked> asked_;
  std::uint64_t tick_ = 1;
  std::uint64_t last_worker_ = 0;
  std::uint64_t last_number_ = 0;
  std::uint64_t stalled_until_ = 0;
  std::uint64_t moved_ = 0, cast_ = 0, fell_back_ = 0;
  bool asking_ = true;
  std::string wrong_;
};

} // namespace rollcast::collective::sim
