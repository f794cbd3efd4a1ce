#pragma once

#include "cluster/weights/update_machine_view.hpp"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace rollcast::weights {

/// What the machine believes of one worker.
struct worker_status {
  worker_id worker;
  served_weights serves;
  bool routable = false;
  bool preparing = false; ///< For the fleet's update, or fed on its own.
  bool prepared = false;
  std::uint64_t bytes = 0; ///< Of what it prepares.
};

/// What the machine believes of the update in work.
struct update_status {
  update_id number;
  std::uint64_t epoch = 0;
  phase at = phase::idle;
  bool rollback = false;
  std::uint64_t bytes = 0;               ///< In all, once committed by the controller.
  std::optional<content_hash> hash = {}; ///< Once it is known; when waiting it is.
};

/// Decides how weights reach the fleet, and when it flips: the coordinator without clock or I/O.
///
/// The rules and their reasons are in README.md. After every call, carry out what `drain` returns,
/// in order. Equal histories give equal decisions (tests/sim/weights_sim).
///
/// Holds always: all routable workers serve `current()` (while flipping: that, or the update); no
/// worker is routable that does not; every update ends after finitely many `expired`.
class update_machine {
public:
  /// @param serves  what the fleet serves, where that is known (a journal); else the first worker
  ///                that joins decides
  /// @param promised  the highest epoch that was ever given to an update
  /// @param numbers  updates and timers are numbered above this
  explicit update_machine(std::string coordinator_host = {},
                          std::optional<served_weights> serves = {}, std::uint64_t promised = 0,
                          std::uint64_t numbers = 0);

  /// Forgets fleet and epochs, because an empty cluster becomes another one; not the numbers, so
  /// that news and timers from before stay old. @pre no update is in work.
  void reset();

  // -- the controller's commands; a refusal changes nothing ---------------------------------------

  /// Opens an update. Fails with `update_conflict` (one is in work, or nothing is known to be
  /// served) or `stale_epoch`.
  [[nodiscard]] result<update_id> begin(const update_spec& spec);
  /// More of it came: the controller lives. Old news is ignored.
  void received(update_id update);
  /// All of it is there. Fails with `update_conflict` (no such update is being received).
  /// @param hash  of the epoch, where it is known before a worker says it: a complete update
  [[nodiscard]] result<update_id> commit(std::uint64_t epoch, std::optional<content_hash> hash,
                                         std::uint64_t bytes);
  /// Ends an update (or a rollback) before its flip. Fails with `update_conflict`.
  /// @param why  none: a controller wants it
  [[nodiscard]] result<void> abort(std::uint64_t epoch, std::optional<error> why = {});
  /// Goes back to the epoch before the last update; once. Fails with `update_conflict` (one is in
  /// work) or `stale_epoch` (it is not held any more).
  [[nodiscard]] result<update_id> rollback();

  /// Takes note of one event, in whatever order and however late it comes.
  [[nodiscard]] verdict on(const news& what);

  /// Returns what is to be done now, in this order, and forgets it.
  [[nodiscard]] std::vector<decision> drain();

  // -- accounting ---------------------------------------------------------------------------------

  phase at() const noexcept { return update_ ? update_->at : phase::idle; }
  std::optional<served_weights> current() const;
  /// The epoch that `rollback` would go back to.
  std::optional<served_weights> previous() const;
  std::optional<update_status> update() const;
  std::vector<worker_status> workers() const; ///< By id.
  bool routable(worker_id worker) const;

private:
  enum class task : std::uint8_t { none, preparing, prepared, flipping, flipped };

  /// An epoch, and what the coordinator can give of it.
  struct epoch_record {
    served_weights serves;
    bool held = false; ///< The coordinator has every tensor that it differs by from the first.
    bool allow_non_finite = false;
  };

  struct worker_record {
    std::string host;
    served_weights serves;
    std::optional<served_weights> kept; ///< In its second buffer, as `flip::back` would serve it.
    bool routable = false;
    bool unfit = false; ///< Feeding it failed; only a complete update can help.
    task doing = task::none;
    update_id update; ///< What it does that for: the fleet's update, or a feeding of its own.
    cargo what = cargo::sent;
    bool back = false;
    std::optional<worker_id> upstream;
    std::uint64_t bytes = 0;
    std::uint32_t redirects = 0;
    timer_id silence;
    served_weights target; ///< Of a feeding.
  };

  struct update_record {
    update_id number;
    update_spec spec;
    phase at = phase::receiving;
    bool rollback = false;
    std::optional<content_hash> hash; ///< Told, or of the first worker that is prepared.
    std::uint64_t bytes = 0;
    timer_id phase_timer;
    timer_id preparing_timer;
    bool overdue = false;          ///< The time for preparing is over.
    std::optional<worker_id> tail; ///< The last of the chain.
  };

  verdict note(const worker_joined& e);
  verdict note(const worker_lost& e);
  verdict note(const progressed& e);
  verdict note(const prepared& e);
  verdict note(const refused& e);
  verdict note(const upstream_failed& e);
  verdict note(const quiet& e);
  verdict note(const flipped& e);
  verdict note(const expired& e);

  /// It was fed, and has another hash than wanted.
  void mismatch(const prepared& e, worker_record& w, const served_weights& wanted, bool held);

  bool takes_part(const worker_record& w) const;
  static void rest(worker_record& w);
  /// The record of a worker that does `doing` for `update`, or null: old news.
  worker_record* find(worker_id id, update_id update, task doing);
  /// Whether a worker that does nothing can be part of the update in work.
  bool can_recruit(const worker_record& w) const;
  std::uint32_t count(task doing) const; ///< Of those who take part.
  bool serves_current(const worker_record& w) const;

  timer_id arm_timer(deadline kind);
  void distribute();
  void recruit(worker_id id, worker_record& w, std::optional<worker_id> upstream);
  void order(worker_record& w, const prepare& what);
  void feed(worker_id id, worker_record& w);
  void order_flip(worker_id id, worker_record& w, std::uint64_t epoch);
  void place_idle_workers();
  bool advance();
  void settle();
  void finish();
  void abandon(error why);
  void expel_worker(worker_id id, error why, bool for_good);
  void forget(worker_id id);
  void expel_while(task doing, const char* late);

  std::string host_;
  std::optional<epoch_record> current_;
  std::optional<epoch_record> previous_;
  std::uint64_t highest_epoch_ = 0;
  std::optional<update_record> update_;
  std::map<worker_id, worker_record> workers_;
  worker_id last_worker_;
  std::uint64_t last_update_ = 0;
  std::uint64_t last_timer_ = 0;
  std::vector<decision> decisions_;
};

} // namespace rollcast::weights
