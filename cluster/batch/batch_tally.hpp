#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/ids.hpp"
#include "engine/step/request.hpp"

#include <cstdint>
#include <map>
#include <string>

namespace rollcast {

/// What each worker did for one batch, from the workers' cumulative counters. Times are nanoseconds
/// of one monotonic clock, handed in. Two batches that run together share a worker's counters, so
/// each of them counts the other's steps too.
class batch_tally {
public:
  /// The worker is there from now on; `stats` is where its counters stand. A second call changes
  /// nothing.
  void join(worker_id worker, const std::string& name, const engine_stats& stats,
            std::uint64_t now_ns);
  /// Newer counters of a worker that joined.
  void update(worker_id worker, const engine_stats& stats);
  void leave(worker_id worker, std::uint64_t now_ns);

  void count_chunk(worker_id worker, std::uint64_t tokens);
  void count_migration(worker_id target, std::uint64_t bytes);

  /// Fills the fields of `out` that come from workers, for a batch that ran over [begin, end].
  void summarise(std::uint64_t begin_ns, std::uint64_t end_ns, wire::batch_summary& out) const;

private:
  struct share {
    std::string name;
    engine_stats first;
    engine_stats last;
    std::uint64_t from_ns = 0;
    std::uint64_t until_ns = 0; ///< 0 while it is there.
    std::uint64_t tokens = 0;
    std::uint64_t chunks = 0;
    std::uint64_t migrations = 0;
    std::uint64_t migrated_bytes = 0;
  };
  std::map<worker_id, share> shares_;
};

} // namespace rollcast
