#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace rollcast {

/// Bounds of a `cluster_view`, so that neither making nor sending one depends on the load. What
/// does not fit is counted.
struct cluster_view_limits {
  std::size_t workers = 64;
  std::size_t chunks = 64; ///< Of one worker.
  std::size_t groups = 40;
  std::size_t members = 32; ///< Of one group.
  std::size_t batches = 16;
  /// Responses that are looked at for groups to show of which nothing runs, about.
  std::size_t responses_searched = 20'000;
};

/// What somebody who may not ask the scheduler anything may see of its cluster: names of workers,
/// counts, lengths and epochs. No prompt, token, batch key, client, address or path.
struct cluster_view {
  /// A response that a worker runs. Tokens are those at its last chunk edge.
  struct chunk {
    std::uint64_t group = 0;
    std::uint32_t index = 0;
    std::uint32_t tokens = 0;
    std::uint32_t expected = 0; ///< Of its group; 0: not known.
  };
  struct worker {
    std::uint64_t id = 0;
    std::string name;
    std::string state; ///< ready, stale or draining.
    std::uint64_t epoch = 0;
    std::uint64_t running = 0;
    std::uint64_t waiting = 0;
    std::uint64_t slots = 0;
    std::uint64_t kv_blocks = 0;
    std::uint64_t kv_used = 0;
    std::uint64_t kv_parked = 0;
    double tokens_per_s = 0;
    std::vector<chunk> chunks;
    std::uint64_t chunks_in_all = 0;
  };
  enum class stage : std::uint8_t { waiting, running, done };
  struct member {
    std::uint32_t index = 0;
    std::uint32_t tokens = 0; ///< Its length, or at its last chunk edge.
    stage at = stage::waiting;
    std::uint64_t worker = 0; ///< While running.
  };
  struct group {
    std::uint64_t id = 0;
    std::uint64_t batch = 0;
    std::uint32_t expected = 0; ///< What the policy expects of its members; 0: not known.
    std::uint32_t limit = 0;    ///< Most tokens of a response.
    std::uint64_t responses = 0;
    std::uint64_t finished = 0;
    std::vector<member> members;
  };
  struct batch {
    std::uint64_t id = 0;
    std::string policy;
    std::string phase; ///< queued, running or ended: collected, but not yet acknowledged.
    std::uint64_t responses = 0;
    std::uint64_t finished = 0;
    std::uint64_t running = 0;
    std::uint64_t tokens = 0;
    double seconds = 0; ///< Since it started.
  };
  /// Something that is wrong, or that a person should know.
  struct alert {
    bool wrong = false; ///< Else it is a note.
    std::string text;
  };

  std::string version;
  std::string model;
  std::string numerics;
  double uptime_s = 0;
  double tokens_per_s = 0;     ///< Over the last ten seconds.
  std::vector<double> history; ///< Tokens a second, one for each of the last seconds, oldest first.
  std::uint64_t tokens = 0;    ///< Generated since the scheduler started.
  std::uint64_t responses = 0; ///< Finished since then.
  std::uint64_t running = 0;
  std::uint64_t waiting = 0;
  std::uint64_t live_groups = 0;

  std::uint64_t epoch = 0;
  std::uint64_t next_epoch = 0;     ///< Of the update under way; 0: none.
  std::uint64_t previous_epoch = 0; ///< Held for a rollback; 0: none.
  std::string phase;                ///< Of that update.
  std::uint64_t workers_prepared = 0;

  std::uint64_t workers_in_all = 0;
  std::uint64_t batches_in_all = 0;
  std::vector<worker> workers;
  std::vector<batch> batches;
  std::vector<group> groups;
  std::vector<alert> alerts;
};

/// The body of /status.json. `age_s` is how long ago the view was made; the page says that the
/// scheduler does not turn when that is more than a few seconds.
std::string to_json(const cluster_view& view, double age_s);

} // namespace rollcast
