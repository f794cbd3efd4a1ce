#pragma once

#include "engine/base/error.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

namespace rollcast {

/// Nanoseconds of the monotonic clock.
inline std::uint64_t steady_ns() noexcept {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                      std::chrono::steady_clock::now().time_since_epoch())
                                      .count());
}

/// What the scheduler actor lets health checks see. Any thread.
struct scheduler_pulse {
  std::atomic<std::uint64_t> beat_ns{0};       ///< When its event loop last turned.
  std::atomic<std::uint32_t> ready_workers{0}; ///< Registered, not draining.
  std::atomic<bool> stopped{false};            ///< Told to stop, and no chunk runs any more.
};

/// Where a worker stands with its scheduler.
enum class link_state : std::uint8_t {
  down,        ///< No scheduler: somebody must connect.
  registering, ///< Connected, the scheduler has not answered yet.
  up,          ///< Registered.
  refused,     ///< The scheduler does not want this worker.
};

/// What a worker actor tells the thread that keeps its link, and health checks. Any thread.
class worker_pulse {
public:
  std::atomic<std::uint64_t> beat_ns{0}; ///< When its event loop last turned.
  std::atomic<bool> idle{true};          ///< Holds no response in any state.
  std::atomic<bool> current{false};      ///< Serves the cluster's epoch, so chunks may come.
  std::atomic<bool> drained{false};      ///< The scheduler has promised to send no new chunks.

  void set_link(link_state to, std::optional<error> why = {}) {
    {
      const std::scoped_lock lock{mutex_};
      link_ = to;
      why_ = std::move(why);
    }
    changed_.notify_all();
  }

  link_state link() const {
    const std::scoped_lock lock{mutex_};
    return link_;
  }

  /// Why the link is `refused` or `down`.
  std::optional<error> why() const {
    const std::scoped_lock lock{mutex_};
    return why_;
  }

  /// Waits until the link is not `is` any more, or `span` has passed.
  void wait_while(link_state is, std::chrono::milliseconds span) const {
    std::unique_lock lock{mutex_};
    changed_.wait_for(lock, span, [&] { return link_ != is; });
  }

private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  link_state link_ = link_state::down;
  std::optional<error> why_;
};

} // namespace rollcast
