#include "engine/memory/block_recycler.hpp"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace rollcast {

namespace {

using clock = std::chrono::steady_clock;

constexpr std::size_t page = 4'096;
constexpr std::align_val_t heap_alignment{64};

/// Room for a block of so many bytes, by whole pages, a quarter larger at the most beyond 16 KiB:
/// the next one is rarely of the same size.
std::size_t rounded(std::size_t bytes) noexcept {
  const auto step = std::max(page, std::bit_floor(bytes) / 4);
  return (bytes + step - 1) / step * step;
}

/// A sanitizer is told what of a block may be used.
void allow([[maybe_unused]] void* block, [[maybe_unused]] std::size_t bytes, bool use) noexcept {
  if (use)
    ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  else
    ASAN_POISON_MEMORY_REGION(block, bytes);
}

} // namespace

/// In front of each block. 64 bytes, so that the block is aligned as kernels like it.
struct alignas(64) block_recycler::header {
  std::size_t bytes = 0; ///< Of the mapping, with this; 0: it is of the heap.
  header* next = nullptr;
  clock::time_point since{}; ///< When it was put back.
};

block_recycler& block_recycler::process() noexcept {
  static auto* const only = new block_recycler; // outlives whatever holds blocks until the end
  return *only;
}

/// The smallest that is large enough, and not so large that it is better kept for others.
block_recycler::header* block_recycler::unlink_fitting(std::size_t bytes) noexcept {
  header** best = nullptr;
  for (auto at = &waiting_; *at != nullptr; at = &(*at)->next) {
    const auto size = (*at)->bytes;
    if (size >= bytes && size / 2 <= bytes && (best == nullptr || size < (*best)->bytes))
      best = at;
    if (size == bytes)
      break;
  }
  if (best == nullptr)
    return nullptr;
  const auto found = std::exchange(*best, (*best)->next);
  waiting_bytes_ -= found->bytes;
  return found;
}

void* block_recycler::take(std::size_t bytes) {
  const auto needed = std::max(bytes, rounded(bytes + sizeof(header))); // or past 2^64
  header* found = nullptr;
  {
    const std::scoped_lock lock{mutex_};
    found = unlink_fitting(needed);
  }
  const auto map = [needed] {
    return ::mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  if (found == nullptr) {
    auto mapping = map();
    if (mapping == MAP_FAILED && give_back({}) > 0)
      mapping = map();
    if (mapping == MAP_FAILED) // the heap may have room yet, or says that nothing has
      return new (::operator new(needed, heap_alignment)) header + 1;
    ::madvise(mapping, needed, MADV_DONTDUMP);
    found = new (mapping) header{.bytes = needed};
  }
  allow(found + 1, found->bytes - sizeof(header), false);
  allow(found + 1, bytes, true);
  return found + 1;
}

void block_recycler::put_back(void* block) noexcept {
  if (block == nullptr)
    return;
  const auto at = static_cast<header*>(block) - 1;
  if (at->bytes == 0)
    return ::operator delete(at, heap_alignment);
  const auto bytes = at->bytes;
  {
    const std::scoped_lock lock{mutex_};
    if (waiting_bytes_ + bytes <= waiting_max) {
      allow(block, bytes - sizeof(header), false);
      waiting_bytes_ += bytes;
      at->since = clock::now();
      at->next = std::exchange(waiting_, at);
      return;
    }
  }
  allow(block, bytes - sizeof(header), true);
  ::munmap(at, bytes);
}

std::size_t block_recycler::give_back(std::chrono::nanoseconds unwanted_for) noexcept {
  header* going = nullptr;
  {
    const std::scoped_lock lock{mutex_};
    const auto until = clock::now() - unwanted_for;
    auto at = &waiting_; // latest first: all behind the first old one are old
    while (*at != nullptr && (*at)->since > until)
      at = &(*at)->next;
    going = std::exchange(*at, nullptr);
    for (auto each = going; each != nullptr; each = each->next)
      waiting_bytes_ -= each->bytes;
  }
  std::size_t bytes = 0;
  while (going != nullptr) {
    const auto next = going->next;
    const auto size = going->bytes;
    allow(going, size, true);
    if (::munmap(going, size) == 0)
      bytes += size;
    going = next;
  }
  return bytes;
}

std::size_t block_recycler::waiting() const noexcept {
  const std::scoped_lock lock{mutex_};
  return waiting_bytes_;
}

} // namespace rollcast
