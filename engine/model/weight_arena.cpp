#include "engine/model/weight_arena.hpp"

#include <mutex>
#include <utility>

namespace rollcast {
namespace {

/// Smaller ones are as quick to get anew.
constexpr std::size_t kept_bytes_min = std::size_t{16} << 20;

struct shelf {
  std::mutex mutex;
  aligned_buffer memory; ///< Guarded by `mutex`, as below.
  content_hash layout;
};

shelf& the_shelf() {
  static shelf s;
  return s;
}

} // namespace

result<weight_arena> weight_arena::make(std::size_t bytes, const content_hash& layout) {
  weight_arena out;
  out.layout_ = layout;
  auto& s = the_shelf();
  {
    const std::scoped_lock lock{s.mutex};
    if (s.memory.size() == bytes && s.layout == layout)
      out.memory_ = std::exchange(s.memory, aligned_buffer{});
    else
      s.memory = aligned_buffer{}; // another model: what is kept helps nobody
  }
  if (out.memory_.size() == bytes)
    return out;
  auto fresh = aligned_buffer::make(bytes);
  if (!fresh)
    return fail(fresh);
  out.memory_ = std::move(*fresh);
  return out;
}

weight_arena::~weight_arena() {
  if (memory_.size() < kept_bytes_min)
    return;
  auto& s = the_shelf();
  const std::scoped_lock lock{s.mutex};
  std::swap(s.memory, memory_);
  s.layout = layout_;
}

} // namespace rollcast
