#pragma once

namespace rollcast {

/// Wakes a thread that sits in `zmq_poll`, from any other thread. ZeroMQ sockets belong to one
/// thread, so everybody else leaves a note in a queue and rings this bell.
class wake_fd {
public:
  wake_fd();
  ~wake_fd();
  wake_fd(const wake_fd&) = delete;
  wake_fd& operator=(const wake_fd&) = delete;

  /// Any thread, any time; rings that nobody heard yet count as one.
  void ring() const noexcept;
  /// The polling thread, once the descriptor is readable.
  void silence() const noexcept;
  int descriptor() const noexcept { return descriptor_; }

private:
  int descriptor_;
};

} // namespace rollcast
