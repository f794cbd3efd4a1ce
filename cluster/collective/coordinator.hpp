#pragma once

#include "cluster/collective/view.hpp"

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace rollcast::collective {

/// Any clock that only goes forward; the caller's.
using instant = std::chrono::nanoseconds;

struct coordinator_limits {
  instant pause = std::chrono::seconds{1};     ///< From a change of members to a new epoch.
  instant id_max = std::chrono::seconds{10};   ///< For rank 0 to make the id.
  instant form_max = std::chrono::seconds{60}; ///< For all members to say `ready`.
  /// For all members of a round to say that it is over. Longer than a member itself waits, whose
  /// words then say why.
  instant round_max = std::chrono::seconds{20};
  /// Epochs in a row that failed before a round of theirs was over. Then there are none until the
  /// members change, and all goes by ZeroMQ. After each the pause is twice as long.
  std::uint32_t failures_max = 4;
  /// For a move to wait for its round. Well below a member's `fetch_max`: what is begun must still
  /// be waited for when the order is there.
  instant move_max = std::chrono::seconds{2};
  std::size_t moves_max = 8;                              ///< Of one round.
  std::uint64_t round_bytes_max = std::uint64_t{1} << 30; ///< So; one alone may be larger.
};

/// Decides which workers form a group, and what it does next: the scheduler's half of the protocol,
/// without clock or I/O. README.md has the rules. After every call, send what `drain` returns, in
/// this order. Equal histories give equal orders.
class coordinator {
public:
  struct addressed {
    worker_id to;
    order what;
  };
  struct counters {
    std::uint64_t epochs = 0; ///< That were opened.
    std::uint64_t failures = 0;
    std::uint64_t rounds = 0; ///< That are over.
    std::uint64_t moves = 0;
    std::uint64_t moved_bytes = 0;
    std::uint64_t cast_bytes = 0; ///< Of the root alone, however many received them.
  };

  explicit coordinator(coordinator_limits limits = {}) : limits_(limits) {}

  /// A worker is there, with a device that no other member may share, whatever their hosts; ""
  /// takes no part.
  /// @pre ids ascend and are never reused.
  void joined(worker_id worker, const std::string& device, instant now);
  void left(worker_id worker, instant now);
  void on(const news& what, instant now);
  /// Lets time pass; call it some times a second.
  void turn(instant now);
  /// What is to be sent now. @returns it, and forgets it.
  std::vector<addressed> drain();

  /// The last that was begun; 0: none was.
  std::uint64_t epoch() const noexcept { return epoch_; }
  /// Members of the open epoch by rank; empty while there is none.
  std::vector<worker_id> members() const;
  const counters& counts() const noexcept { return counts_; }
  /// Why the last epoch ended that failed; "" if none did.
  const std::string& last_failure() const noexcept { return last_failure_; }

private:
  enum class phase : std::uint8_t { resting, asking, forming, open };
  struct job { ///< A round to come.
    std::vector<move> moves;
    cast slices;
  };
  struct queued {
    move what;
    instant until{0}; ///< Nobody waits for it any more.
  };

  std::vector<worker_id> eligible() const;
  std::uint32_t rank_of(worker_id worker) const; ///< members_.size() if it is none.
  void change(const std::vector<worker_id>& before, bool lost, instant now);
  void form(instant now);
  void end_epoch(const std::string& why);
  void fail_epoch(const std::string& why, instant now);
  void take_wanted(const news& what, instant now);
  void take_declined(const news& what);
  void take_done(const news& what, instant now);
  void decline(const move& m);
  void drop_late_moves(instant now);
  void begin_round(instant now);
  void send(worker_id to, order what);

  coordinator_limits limits_;
  std::map<worker_id, std::string> devices_; ///< Of all workers that are there.
  phase at_ = phase::resting;
  std::uint64_t epoch_ = 0;
  std::vector<worker_id> members_; ///< Of the epoch, by rank.
  std::string id_;
  std::set<worker_id> waiting_for_; ///< To say `ready`, or that the round is over.
  instant deadline_{0};             ///< Of what is waited for; when to form, while resting.
  bool outgrown_ = false;           ///< Others should be members too: a new epoch after this round.
  std::uint32_t failures_ = 0;      ///< In a row.
  std::uint64_t round_ = 0;
  bool running_ = false;
  job current_;              ///< While running.
  std::deque<queued> moves_; ///< To be made; the oldest first.
  std::deque<cast> casts_;   ///< So.
  bool cast_last_ = false;   ///< They take turns.
  std::vector<addressed> out_;
  counters counts_;
  std::string last_failure_;
};

} // namespace rollcast::collective
