#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

namespace rollcast {

/// Memory for large blocks that come and go, such as KV images. A freed block waits for the next
/// one of about its size, because fresh memory costs a page fault for every page of it; what waited
/// for long, and what is more than `waiting_max`, goes back to the system. A core file leaves
/// out what was mapped for blocks. Any thread may call.
class block_recycler {
public:
  /// Bytes of blocks that wait, at most.
  static constexpr std::size_t waiting_max = std::size_t{256} << 20;

  static block_recycler& process() noexcept;

  block_recycler() = default;
  ~block_recycler() { give_back({}); }
  block_recycler(const block_recycler&) = delete;
  block_recycler& operator=(const block_recycler&) = delete;

  /// @returns `bytes` bytes with any content, aligned to 64. Throws `std::bad_alloc` as `new` does.
  void* take(std::size_t bytes);
  /// @param block what `take` returned, or null.
  void put_back(void* block) noexcept;

  /// Gives back the blocks that nobody has wanted for so long. @returns how many bytes that were.
  std::size_t give_back(std::chrono::nanoseconds unwanted_for) noexcept;
  /// Bytes of blocks that wait.
  std::size_t waiting() const noexcept;

private:
  struct header;
  header* unlink_fitting(std::size_t bytes) noexcept;

  mutable std::mutex mutex_;
  header* waiting_ = nullptr; ///< Latest first.
  std::size_t waiting_bytes_ = 0;
};

/// For containers of trivial elements: memory of `block_recycler`, elements that are not
/// initialized unless they are given a value.
template <class T>
struct recycling_allocator {
  static_assert(std::is_trivial_v<T> && alignof(T) <= 64);
  using value_type = T;

  recycling_allocator() = default;
  template <class U>
  recycling_allocator(const recycling_allocator<U>&) noexcept {}

  T* allocate(std::size_t n) {
    return static_cast<T*>(block_recycler::process().take(n * sizeof(T)));
  }
  void deallocate(T* block, std::size_t) noexcept { block_recycler::process().put_back(block); }

  template <class U, class... Arguments>
  void construct(U* at, Arguments&&... arguments) {
    if constexpr (sizeof...(Arguments) == 0)
      ::new (static_cast<void*>(at)) U;
    else
      ::new (static_cast<void*>(at)) U(std::forward<Arguments>(arguments)...);
  }

  friend bool operator==(const recycling_allocator&, const recycling_allocator&) { return true; }
};

} // namespace rollcast
