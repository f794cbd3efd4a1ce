#pragma once

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda::simt::host {

/// A stack and where it stopped. Switches of x86-64 cost a few nanoseconds (no system call);
/// elsewhere ucontext does them.
class fiber {
public:
  fiber() = default;
  fiber(const fiber&) = delete;
  fiber& operator=(const fiber&) = delete;
  ~fiber();

  /// Makes the next `enter` call `function(argument)`, which must not return. What an earlier
  /// function had left on the stack is forgotten without destructors.
  void start(void (*function)(void*), void* argument);

  /// Runs the fiber until it leaves. @pre called by the host thread, outside of any fiber.
  void enter();

  /// Goes back to `enter`'s caller. @pre called by this fiber.
  void leave();

private:
  struct context;
  context* context_ = nullptr;
};

} // namespace rollcast::kernels::cuda::simt::host
