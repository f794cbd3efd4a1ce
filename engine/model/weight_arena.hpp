#pragma once

#include "engine/base/aligned_buffer.hpp"
#include "engine/base/hash.hpp"

#include <cstddef>

namespace rollcast {

/// The memory of packed weights. The process keeps one arena that was let go, for the next weights
/// of the same layout: from the second update on nothing waits for the system to find and clear
/// pages, which can take several times as long as packing does.
class weight_arena {
public:
  weight_arena() = default;
  /// Zero-filled, or what weights of this very layout left: then everything that they did not write
  /// is still zero. Fails as `aligned_buffer::make`.
  /// @param layout  Names what lies where; equal layouts write the same bytes and no others.
  static result<weight_arena> make(std::size_t bytes, const content_hash& layout);
  ~weight_arena();
  weight_arena(weight_arena&&) noexcept = default;
  weight_arena& operator=(weight_arena&&) noexcept = default;

  std::byte* data() const noexcept { return memory_.data(); }
  std::size_t size() const noexcept { return memory_.size(); }

private:
  aligned_buffer memory_;
  content_hash layout_;
};

} // namespace rollcast
