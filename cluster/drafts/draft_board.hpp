#pragma once

#include "cluster/drafts/draft_frame.hpp"

#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace rollcast {

struct draft_board_limits {
  std::uint64_t bytes_max = std::uint64_t{1} << 30;     ///< Of all groups, everything counted.
  std::size_t streams_max = draft_frame_ends_max;       ///< Responses of one group.
  std::size_t peers_max = 65'536;                       ///< Followers of one group.
  std::size_t replay_tokens_max = 1u << 18;             ///< Sent in answer to one message.
  std::chrono::milliseconds follower_silent_max{5'000}; ///< Then it follows no more.
  std::chrono::milliseconds group_linger{60'000};   ///< Without followers, then it is forgotten.
  std::chrono::milliseconds want_pause{50};         ///< Between two requests for the same gap.
  std::chrono::milliseconds conflict_pause{10'000}; ///< Before a stream told twice is asked for.
};

/// Running totals and levels, for metrics.
struct draft_board_figures {
  std::uint64_t groups = 0;
  std::uint64_t bytes = 0;
  std::uint64_t followers = 0;      ///< Pairs of a group and a worker.
  std::uint64_t relayed_tokens = 0; ///< Once for each worker they were sent to, replays included.
  std::uint64_t gaps_repaired = 0;  ///< Times that a worker's stream was found short and completed.
  std::uint64_t refused = 0;        ///< Frames for which there was no room.
  std::uint64_t conflicts = 0;      ///< Streams dropped because they were said to be two things.
  std::uint64_t expired_groups = 0;
};

/// What the draft server knows and what follows from each message: no sockets, no threads, no
/// clock. Peers are opaque names. Replies are written to `outbox` in the order they are to be sent.
class draft_board {
public:
  using time = std::chrono::steady_clock::time_point;

  struct letter {
    std::vector<std::string> to;
    draft_frame frame;
  };

  draft_board(draft_board_limits limits, std::uint64_t incarnation);

  /// Takes a worker's message in.
  void take(const std::string& peer, const draft_frame& frame, time now);
  /// Forgets what nobody follows and who says nothing; to be called about once a second.
  void expire(time now);
  /// A peer that can no longer be sent to.
  void forget(const std::string& peer);

  std::vector<letter> outbox; ///< For whoever drives this to send and clear.
  const draft_board_figures& figures() const noexcept { return figures_; }

private:
  struct stream {
    std::vector<token_id> tokens;
    time wanted_at{};
    bool wanted = false; ///< A gap in what a worker sent, not closed yet.
  };
  struct group_record {
    std::map<response_id, stream> streams;
    std::map<std::string, time> followers; ///< When they last said so.
    time followed_at{};                    ///< When one last did.
    std::uint64_t bytes = 0;
    std::list<draft_group>::iterator use;
  };
  using group_map = std::unordered_map<draft_group, group_record>;

  void take_follow(const std::string& peer, const draft_frame& frame, time now);
  void take_unfollow(const std::string& peer, const draft_frame& frame);
  void take_tokens(const std::string& peer, const draft_frame& frame, time now);
  void take_want(const std::string& peer, const draft_frame& frame);
  void want(const std::string& peer, const draft_frame& about, response_id response, stream& s,
            time now);
  std::size_t replay(const std::string& peer, draft_group group, response_id response,
                     const stream& s, std::size_t from, std::size_t most);
  void relay(const std::string& from, const group_record& g, draft_frame frame);
  stream* open(draft_group name, group_record& g, response_id response);
  bool append(draft_group name, group_record& g, stream& s, std::span<const token_id> tokens);
  bool make_room(draft_group keep, std::uint64_t bytes);
  void charge(group_record& g, std::uint64_t bytes);
  void drop_followers(group_record& g, std::size_t count);
  void drop(group_map::iterator it);

  draft_board_limits limits_;
  std::uint64_t incarnation_;
  group_map groups_;
  std::list<draft_group> uses_; ///< Longest without a new token first.
  draft_board_figures figures_;
};

} // namespace rollcast
