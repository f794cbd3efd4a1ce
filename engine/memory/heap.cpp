#include "engine/memory/heap.hpp"

#include <malloc.h>

#include <algorithm>
#include <mutex>

namespace rollcast {

namespace {

using clock = std::chrono::steady_clock;

struct keeping {
  std::mutex mutex;
  int holders = 0;            ///< Of `kept_heap`.
  bool kept = false;          ///< The allocator keeps; also for a while after the last holder.
  clock::time_point let_go{}; ///< When the last holder went.
};

keeping& process() {
  static keeping only;
  return only;
}

/// Any value switches off that glibc moves both by what it sees freed.
void map_from(int bytes, int trim_above) noexcept {
  ::mallopt(M_MMAP_THRESHOLD, bytes);
  ::mallopt(M_TRIM_THRESHOLD, trim_above);
}

constexpr int mapped_from = 256 << 10;
constexpr int trimmed_above = 8 << 20;     // messages come in bursts
constexpr int mapped_from_most = 32 << 20; // the most that glibc takes

} // namespace

void settle_heap() noexcept {
  ::mallopt(M_ARENA_MAX, 2);
  map_from(mapped_from, trimmed_above);
}

kept_heap::kept_heap(std::uint32_t bytes) noexcept {
  auto& p = process();
  const std::scoped_lock lock{p.mutex};
  if (p.holders++ == 0)
    map_from(mapped_from_most, static_cast<int>(std::min<std::uint32_t>(bytes, 1u << 30)));
  p.kept = true;
}

kept_heap::~kept_heap() {
  auto& p = process();
  const std::scoped_lock lock{p.mutex};
  --p.holders;
  p.let_go = clock::now();
}

bool give_back_heap(std::chrono::milliseconds pause) {
  auto& p = process();
  {
    const std::scoped_lock lock{p.mutex};
    if (!p.kept || p.holders > 0 || clock::now() < p.let_go + pause)
      return false;
    p.kept = false;
    map_from(mapped_from, trimmed_above);
  }
  ::malloc_trim(0);
  return true;
}

} // namespace rollcast
