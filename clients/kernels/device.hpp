#pragma once

#include "engine/backend/thread_pool.hpp"
#include "engine/base/aligned_buffer.hpp"
#include "engine/base/error.hpp"

#include <sys/types.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>

namespace rollcast::capi {

/// The threads and the scratch memory that all calls share. One call at a time holds it.
class device {
public:
  /// The one of this process.
  static device& instance();

  /// Held while a call computes.
  std::mutex& in_use() noexcept { return in_use_; }

  /// The team, begun anew after a fork, whose child has none of its parent's threads.
  thread_pool& pool();
  void set_threads(std::size_t threads);

  /// At least `bytes` of scratch memory, 64-byte aligned, with whatever it held; kept for the next
  /// call. `which` tells the buffers of one call apart.
  enum class use : std::size_t { packed_rows, qkv, kv, count };
  result<std::byte*> scratch(use which, std::size_t bytes);

private:
  std::mutex in_use_;
  std::unique_ptr<thread_pool> pool_;
  std::size_t threads_ = 0; ///< 0: one a processor.
  pid_t owner_ = 0;         ///< The process whose threads `pool_` has.
  aligned_buffer scratch_[static_cast<std::size_t>(use::count)];
};

/// Keeps why this thread's call failed, for `rollcast_kernels_error`.
void keep_error(const std::string& detail);
const char* kept_error() noexcept;

/// Runs one call: `body` returns `result<void>` and computes with the device it is given. No
/// exception leaves: a C caller could do nothing with it.
template <class Body>
int call(const char* name, Body&& body) noexcept {
  try {
    auto& shared = device::instance();
    const std::scoped_lock lock(shared.in_use());
    const result<void> done = body(shared);
    if (done)
      return 0;
    keep_error(std::string(name) + ": " + done.error().detail);
  } catch (const std::exception& failure) { // the standard library's: no memory, no more threads
    keep_error(std::string(name) + ": " + failure.what());
  }
  return 1;
}

} // namespace rollcast::capi
