#pragma once

#include "cluster/telemetry/cluster_view.hpp"

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace rollcast {

/// Between the scheduler actor, which pins up a view of the cluster about once a second, and the
/// thread of the metrics port, which hands it to whoever asks: neither ever waits for the other.
class status_board {
public:
  explicit status_board(std::string version);

  /// The body of /status.json. Any thread.
  std::string json() const;

  // -- the scheduler actor only; times are nanoseconds of its clock -----------------

  /// Whether it is time for another view. If so, its time is noted.
  bool due(std::uint64_t now_ns);
  /// Takes the counter of generated tokens of a worker. @returns its tokens a second between the
  /// last two views.
  double pace(std::uint64_t worker, std::uint64_t tokens);
  /// A worker was lost.
  void lost(const std::string& name);
  /// Pins up the view. Adds version, throughput, and the alert of workers that were lost lately.
  void pin(cluster_view view);

private:
  struct loss {
    std::string name;
    std::uint64_t at_ns = 0;
  };
  void add_throughput(cluster_view& view);
  void add_losses(cluster_view& view);

  const std::string version_;
  std::uint64_t looked_ns_ = 0;                   ///< When `due` last said yes; 0: never.
  double passed_s_ = 0;                           ///< Between the last two of these.
  double rate_ = 0;                               ///< Sum of `pace` since then.
  std::map<std::uint64_t, std::uint64_t> before_; ///< Tokens of each worker at the last view.
  std::map<std::uint64_t, std::uint64_t> heard_;  ///< Those told since then.
  std::deque<double> history_;                    ///< Tokens a second, oldest first.
  std::deque<loss> losses_;                       ///< Oldest first.

  mutable std::mutex mutex_; ///< Of what follows; held to copy a pointer.
  std::shared_ptr<const cluster_view> pinned_;
  std::uint64_t pinned_ns_ = 0; ///< Of the machine's clock.
};

} // namespace rollcast
