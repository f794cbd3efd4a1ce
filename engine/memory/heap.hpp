#pragma once

#include <chrono>
#include <cstdint>

namespace rollcast {

/// For the begin of `main`: how glibc's allocator treats this process. Two arenas, because each of
/// them keeps the most that it ever held. Blocks of 256 KiB and more are mapped one by one and
/// given back when they are freed; glibc would stop to do so with the first that is freed, and then
/// holes of all sizes make a heap grow for as long as it works.
void settle_heap() noexcept;

/// While one lives, freed blocks of up to 32 MiB stay in the process: for a stream of them, each of
/// which would cost page faults for all of it. The process has this once, whoever asks. glibc calls
/// `mallopt` unsafe among threads that allocate; what it sets here are two numbers, and any value
/// that an allocation meets is right.
class kept_heap {
public:
  /// @param bytes what each arena may keep, of whoever asks first.
  explicit kept_heap(std::uint32_t bytes = 64u << 20) noexcept;
  ~kept_heap();
  kept_heap(const kept_heap&) = delete;
  kept_heap& operator=(const kept_heap&) = delete;
};

/// Gives back what was kept once no `kept_heap` has lived for `pause`; cheap until then. A
/// `weight_exchange` does so, which every process that has a `kept_heap` has.
/// @returns whether it gave back.
bool give_back_heap(std::chrono::milliseconds pause = std::chrono::seconds{10});

} // namespace rollcast
