#pragma once

#include "cluster/drafts/draft_frame.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

namespace rollcast {

struct draft_ledger_limits {
  std::uint32_t vocabulary = 0;              ///< Tokens at or above it are nobody's; 0: not known.
  std::uint32_t flush_tokens = 64;           ///< So many of one response are sent at once,
  std::chrono::milliseconds flush_after{20}; ///< or what there is when the oldest is so old.
  /// Beside many others a response waits longer: so long for each that has something to send. So no
  /// more than one frame in this time is sent on the whole.
  std::chrono::microseconds frame_pause{1'000};
  std::chrono::milliseconds follow_every{1'000}; ///< What is known is told so often.
  std::chrono::milliseconds idle_max{30'000};    ///< Without a member here, then it is unfollowed.
  std::chrono::milliseconds want_pause{50};      ///< Between two requests for the same gap.
  std::chrono::milliseconds full_pause{1'000};   ///< When the drafter does not take what comes.
  std::chrono::milliseconds lost_pause{10'000};  ///< When it has lost what it had.
  std::uint64_t tokens_max = std::uint64_t{16} << 20; ///< Kept to be sent again, of all groups.
};

/// Running totals, for metrics.
struct draft_ledger_figures {
  std::uint64_t written_tokens = 0; ///< Sent, repeats included.
  std::uint64_t heard_tokens = 0;   ///< Given to the drafter.
  std::uint64_t gaps_repaired = 0;  ///< Of what was heard.
  std::uint64_t rejected = 0;       ///< Frames with tokens out of the vocabulary.
};

/// What siblings wrote elsewhere, on its way to the drafter.
struct heard_tokens {
  group_id group;
  draft_group name;
  response_id response;
  std::uint32_t position = 0;
  std::vector<token_id> tokens;
  std::uint32_t age_us = 0; ///< When it arrived here; `draft_age_replayed` says nothing.
  std::chrono::steady_clock::time_point arrived{};
};

/// A worker's side of the exchange of drafts: what its responses have written, how much of that the
/// server has, and how much of every sibling the drafter has. No sockets, no threads, no clock.
class draft_ledger {
public:
  using time = std::chrono::steady_clock::time_point;
  /// Hands a frame to the transport. @returns false if it cannot take one now.
  using send_function = std::function<bool(const draft_frame&)>;
  /// Hands tokens to the drafter. @returns false if it cannot take them now.
  using hand_function = std::function<bool(heard_tokens)>;

  explicit draft_ledger(draft_ledger_limits limits) : limits_(limits) {}

  // -- what this worker does --------------------------------------------------

  /// A response begins to run here, with these tokens so far.
  void follow(group_id group, draft_group name, response_id response,
              std::span<const token_id> tokens, time now);
  /// And has written more. What does not continue what was told before is left out: the next
  /// `follow` brings it.
  void wrote(draft_group name, response_id response, std::uint32_t position,
             std::span<const token_id> tokens, time now);
  /// It does not run here any more; what it wrote is kept for a while.
  void leave(draft_group name, response_id response, time now);
  /// The drafter has no more of a sibling than this: what was handed to it is gone. Nothing of the
  /// sibling is taken for a while, because a drafter short of memory would lose it again.
  void lost(draft_group name, response_id response, std::uint32_t position, time now);

  // -- what the server does ---------------------------------------------------

  void take(const draft_frame& frame, time now, const send_function& send,
            const hand_function& hand);

  /// Sends what is due, up to the first frame that is refused; what was not sent stays due, but
  /// that a group is unfollowed is said once: a follower that is silent is forgotten anyway.
  /// @returns false if a frame was refused.
  bool flush(time now, const send_function& send);
  /// True while something waits to be sent soon.
  bool waiting() const noexcept { return !unsent_.empty(); }

  const draft_ledger_figures& figures() const noexcept { return figures_; }

private:
  struct stream {
    std::vector<token_id> written; ///< By this worker, from the prompt on.
    std::uint32_t known = 0;       ///< Of the drafter: written here or heard.
    std::uint32_t server = 0;      ///< What the server has, as far as we know.
    time unsent_since{};
    time wanted_at{};
    time deaf_until{};    ///< What comes before is not taken, and not asked for.
    bool wanted = false;  ///< A gap in what was heard.
    bool running = false; ///< Here.
    bool replay = false;  ///< What is to be sent was sent before.
  };
  struct group_record {
    group_id group;
    std::map<response_id, stream> streams;
    time used{};             ///< When a member last began, wrote or ended here.
    std::size_t running = 0; ///< Members that run here.
    time follow_at{};        ///< When the server is to be told next.
    std::uint64_t tokens = 0;
  };

  void meet(std::uint64_t incarnation);
  void take_tokens(group_record& g, const draft_frame& frame, time now, const send_function& send,
                   const hand_function& hand);
  void take_want(group_record& g, const draft_frame& frame, time now);
  /// Adds what a response that runs here has written.
  void extend(group_record& g, stream& s, std::span<const token_id> more);
  void note_unsent(draft_group name, response_id response, stream& s, time now);
  bool send_follow(draft_group name, const group_record& g, time now,
                   const send_function& send) const;
  bool send_stream(draft_group name, response_id response, stream& s, time now,
                   const send_function& send);
  void forget(std::map<draft_group, group_record>::iterator it);
  void make_room(draft_group keep);

  draft_ledger_limits limits_;
  std::uint64_t incarnation_ = 0; ///< Of the server heard last.
  std::map<draft_group, group_record> groups_;
  std::set<std::pair<draft_group, response_id>> unsent_;
  std::vector<draft_group> unfollowed_; ///< Since the last `flush`; it tells the server.
  std::uint64_t tokens_ = 0;
  draft_ledger_figures figures_;
};

} // namespace rollcast
