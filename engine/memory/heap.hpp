#pragma once

#include <chrono>
#include <cstdint>

namespace rollcast {

/// For the begin of `main`: how glibc's allocator treats this process. Two arenas, because each of
/// them keeps the most that it ever held. Blocks of 128 KiB and more are mapped one by one and
/// given back when they are freed; glibc would stop to do so with the first that is freed.
void settle_heap() noexcept;

/// While one lives, freed blocks of up to 32 MiB stay in the process: for a stream of them, each of
/// which would cost page faults for all of it. The process
/// has this once, whoever asks.
class kept_heap {
public:
  /// @param bytes what each arena may keep, of whoever asks first.
  explicit kept_heap(std::uint32_t bytes = 64u << 20) noexcept;
  ~kept_heap();
  kept_heap(const kept_heap&) = delete;
  kept_heap& operator=(const kept_heap&) = delete;
};

/// Gives back what was kept once no `kept_heap` has lived for `pause`; cheap until then. Whoever
/// has one calls it from time to time, on a thread that nobody waits for.
/// @returns whether it gave back.
bool give_back_heap(std::chrono::milliseconds pause = std::chrono::seconds{10});

} // namespace rollcast
