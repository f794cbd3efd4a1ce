#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace rollcast {

/// Which KV blocks are free. Hands out any free block; no result may depend on which.
class block_pool {
public:
  explicit block_pool(std::uint32_t blocks);

  std::uint32_t total() const noexcept { return total_; }
  std::uint32_t free() const noexcept { return static_cast<std::uint32_t>(free_.size()); }

  /// Appends `count` blocks to `out`, or does nothing. @returns false if fewer are free.
  bool take(std::uint32_t count, std::vector<std::uint32_t>& out);

  /// Returns blocks [keep, size) of `blocks` to the pool and shortens the list to `keep`.
  void give_back(std::vector<std::uint32_t>& blocks, std::size_t keep = 0);

private:
  std::uint32_t total_;
  std::vector<std::uint32_t> free_; ///< A stack; its capacity is `total_`, so it never grows.
};

} // namespace rollcast
