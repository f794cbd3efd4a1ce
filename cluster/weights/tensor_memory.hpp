#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace rollcast {

/// Memory of tensors. What was let go is kept for the next update, which has tensors of the same
/// sizes: memory that the system must find and clear first is filled at a fraction of the speed.
/// Any thread may ask, and let go.
class tensor_memory {
public:
  /// Keeps at most `kept_bytes_max` bytes that nobody uses; 0 keeps none.
  explicit tensor_memory(std::uint64_t kept_bytes_max = 0);

  /// Memory for `bytes`, with any content; large ones in huge pages.
  /// @returns as `aligned_buffer::make` without memory.
  result<std::shared_ptr<std::byte>> make(std::uint64_t bytes);

  std::uint64_t kept_bytes() const;
  /// Gives back to the system what nobody uses.
  void release();

private:
  struct shelf;
  std::shared_ptr<shelf> shelf_; ///< Shared with what was handed out, which may live longer.
};

} // namespace rollcast
