#include "clients/kernels/device.hpp"

#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

namespace rollcast::capi {

namespace {

std::string& error_of_this_thread() {
  thread_local std::string detail;
  return detail;
}

} // namespace

device& device::instance() {
  // Never destroyed: threads of the caller may still compute while the process ends.
  static auto* const shared = new device;
  return *shared;
}

thread_pool& device::pool() {
  const pid_t here = ::getpid();
  if (owner_ != here) {
    // The parent's threads cannot be joined here, so the pool that knew them is left behind.
    (void)pool_.release();
    owner_ = here;
  }
  if (!pool_) {
    const std::size_t all = std::max(1u, std::thread::hardware_concurrency());
    pool_ = std::make_unique<thread_pool>(threads_ == 0 ? all : threads_);
  }
  return *pool_;
}

void device::set_threads(std::size_t threads) {
  (void)pool(); // so that a pool that a fork left behind is not joined
  threads_ = threads;
  pool_.reset();
}

result<std::byte*> device::scratch(use which, std::size_t bytes) {
  auto& buffer = scratch_[static_cast<std::size_t>(which)];
  // A spare line, because kernels may prefetch past the end.
  if (buffer.size() < bytes + 64) {
    auto larger = aligned_buffer::make(bytes + 64);
    if (!larger)
      return fail(errc::bad_config, "cannot reserve " + std::to_string(bytes)
                                      + " bytes of scratch memory: pass fewer rows at once");
    buffer = std::move(*larger);
  }
  return buffer.data();
}

void keep_error(const std::string& detail) {
  error_of_this_thread() = detail;
}

const char* kept_error() noexcept {
  return error_of_this_thread().c_str();
}

} // namespace rollcast::capi
