#include "cluster/transport/wake_fd.hpp"

#include "engine/base/check.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

namespace rollcast {

wake_fd::wake_fd() : descriptor_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  ROLLCAST_CHECK(descriptor_ >= 0); // out of file descriptors: nothing here could work
}

wake_fd::~wake_fd() {
  ::close(descriptor_);
}

void wake_fd::ring() const noexcept {
  const std::uint64_t one = 1;
  // A full counter would fail with EAGAIN, and then the bell is ringing anyway.
  [[maybe_unused]] const auto written = ::write(descriptor_, &one, sizeof one);
}

void wake_fd::silence() const noexcept {
  std::uint64_t rings = 0;
  [[maybe_unused]] const auto read = ::read(descriptor_, &rings, sizeof rings);
}

} // namespace rollcast
