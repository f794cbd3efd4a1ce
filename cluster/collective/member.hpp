#pragma once

#include "cluster/collective/coordinator.hpp"
#include "cluster/transport/kv_carrier.hpp"
#include "cluster/weights/weight_cargo.hpp"
#include "engine/collective/communicator.hpp"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::collective {

struct member_limits {
  instant form_max = std::chrono::seconds{45};  ///< For the group to form.
  instant round_max = std::chrono::seconds{15}; ///< For one round.
  /// For a round to begin that brings what is wanted. An image that was given is kept twice as
  /// long: the order of the round may be here later than where it is wanted.
  instant fetch_max = std::chrono::seconds{3};
  instant cast_max = std::chrono::seconds{10}; ///< Between two casts of an update.
  /// For a worker to say that it waits for an update which is cast already: its order of that may
  /// lie behind a step. The others wait in the meantime, so well below `round_max`.
  instant prepare_max = std::chrono::seconds{3};
  /// From which a cast ends with the slice that reaches it, so it has less than a slice more. With
  /// a byte for each slice that is one piece of `nccl_limits`.
  std::uint64_t cast_bytes = std::uint64_t{62} << 20;
  std::uint64_t bytes_max = std::uint64_t{8} << 30;       ///< Of KV that one move may bring.
  std::size_t given_max = 128;                            ///< Images that wait to be sent.
  std::uint64_t given_bytes_max = std::uint64_t{2} << 30; ///< Of them; one alone may be larger.
  /// Between two turns of a `runner`, which rests for 1 s at most: after longer its thread hangs.
  instant turn_max = std::chrono::seconds{5};
};

/// A worker's half of the protocol: keeps one communicator, and begins the rounds that it is told
/// to begin. No clock, no threads; the communicator is its only way to others. README.md has the
/// rules. After every call, send what `drain` returns.
///
/// Whatever is asked of it ends: done, or failed within the limits. Memory that a running round
/// uses is held until the round is over or the communicator was aborted.
class member {
public:
  using done_function = kv_carrier::done_function;

  explicit member(communicator_maker& maker, member_limits limits = {})
    : maker_(maker), limits_(limits) {}
  ~member();
  member(const member&) = delete;
  member& operator=(const member&) = delete;

  /// This worker is that incarnation now; 0: it has no scheduler. What was under way fails.
  void serve(worker_id as);
  void obey(const order& what, instant now);
  /// Polls what runs, and gives up what lasts too long.
  void turn(instant now);
  std::vector<news> drain();

  // -- KV, as `kv_carrier` says

  void fetch(std::uint64_t pull, kv_carrier::memory into, done_function done, instant now);
  void give(worker_id puller, std::uint64_t pull, std::span<const std::byte> bytes,
            std::shared_ptr<const void> owner, instant now);

  // -- weights

  /// Casts the slices of an update to all others as they come into `cargo`. Without a cargo, or
  /// unless `epoch` is open, it tells them that it does not: in another epoch nobody waits for it,
  /// or not all do who should.
  void cast_weights(std::uint64_t update, std::uint64_t epoch, std::shared_ptr<weight_cargo> cargo);
  /// Fills `cargo` from casts of `epoch`. `done` hears nothing (complete), or why the rest must
  /// come another way, at once if another epoch is open, or casts of it went by already. Nothing
  /// else may fill it until then.
  void await_weights(std::uint64_t update, std::uint64_t epoch, std::shared_ptr<weight_cargo> cargo,
                     done_function done, instant now);
  /// Forgets both; `done` hears `cancelled`. This worker waits for no cast of it any more.
  void forget_weights(std::uint64_t update);

  /// Members of the open epoch, and this worker is one; else empty.
  std::vector<worker_id> peers() const { return open_ ? members_ : std::vector<worker_id>{}; }
  /// Within how long `turn` is to be called again if nothing else happens.
  instant patience() const noexcept;

private:
  using key = std::pair<worker_id, std::uint64_t>; ///< A puller and its number.
  struct wanted {
    kv_carrier::memory into;
    done_function done;
    instant deadline{0};
    bool running = false; ///< The round that runs brings it.
  };
  struct given {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;
    instant deadline{0};
  };
  struct held { ///< A round that waits for this worker.
    order what;
    instant deadline{0};
  };
  struct casting {
    std::shared_ptr<weight_cargo> cargo;
    std::uint32_t next = 0;  ///< Slice that was not cast.
    std::uint32_t end = 0;   ///< Those before it are here,
    std::uint64_t bytes = 0; ///< and have so many from `next` on.
    bool offered = false;    ///< The coordinator has been told of them.
  };
  struct awaited {
    std::shared_ptr<weight_cargo> cargo;
    done_function done;
    instant deadline{0};
  };
  struct round {
    std::uint64_t number = 0;
    std::vector<std::uint64_t> fetching; ///< Of `fetches_`.
    cast slices;
    std::vector<std::byte> bytes;                  ///< Of the cast, as `cast` says.
    std::vector<kv_carrier::memory> written;       ///< Held on to.
    std::vector<std::shared_ptr<const void>> read; ///< So.
    instant deadline{0};
  };

  void form(const order& what, instant now);
  void begin(const order& what, instant now);
  void start(const order& what, instant now);
  void start_held(instant now);
  bool knows(const cast& slices) const;
  bool has_passed(std::uint64_t update) const;
  void pass(std::uint64_t update);
  result<std::vector<rank_transfer>> transfers_of(const std::vector<move>& moves);
  result<void> check(const cast& slices) const;
  result<void> load(const cast& slices);
  void finish(instant now);
  void end_late(instant now);
  void take_cast(const round& over, instant now);
  result<bool> put_cast(const round& over, weight_cargo& into) const;
  void offer_casts();
  void end_wait(std::uint64_t update, result<void> how);
  void end_fetch(std::uint64_t pull, result<void> how);
  void decline(const order& what);
  void end_epoch(const error& why);
  void fail_epoch(const std::string& why);
  void say(news what);

  communicator_maker& maker_;
  member_limits limits_;
  worker_id id_;
  std::uint64_t epoch_ = 0; ///< 0: none.
  std::uint32_t rank_ = 0;
  std::vector<worker_id> members_;
  bool forming_ = false;
  bool open_ = false;
  instant form_deadline_{0};
  std::map<std::uint64_t, wanted> fetches_;
  std::map<key, given> gives_;
  std::map<std::uint64_t, casting> casting_;
  std::map<std::uint64_t, awaited> awaited_;
  /// The last few updates of which this worker will await no cast, in the order in which it knew:
  /// their numbers need not ascend.
  std::deque<std::uint64_t> passed_;
  std::optional<held> held_;
  std::optional<round> running_;
  std::unique_ptr<communicator> group_; ///< Ends before the memory that it uses.
  std::vector<news> out_;
};

} // namespace rollcast::collective
