#include "engine/cache/block_pool.hpp"

#include "engine/base/check.hpp"

namespace rollcast {

block_pool::block_pool(std::uint32_t blocks) : total_(blocks) {
  free_.reserve(blocks);
  for (std::uint32_t block = blocks; block > 0; --block)
    free_.push_back(block - 1);
}

bool block_pool::take(std::uint32_t count, std::vector<std::uint32_t>& out) {
  if (count > free())
    return false;
  for (std::uint32_t i = 0; i < count; ++i) {
    out.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void block_pool::give_back(std::vector<std::uint32_t>& blocks, std::size_t keep) {
  while (blocks.size() > keep) {
    free_.push_back(blocks.back());
    blocks.pop_back();
  }
  ROLLCAST_CHECK(free_.size() <= total_);
}

} // namespace rollcast
