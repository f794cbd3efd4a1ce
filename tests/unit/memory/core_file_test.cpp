// Goal: a core file leaves out weights, KV and images of it, which may be as large as the machine's
// memory and hold what users wrote; it has the heap.
// Method: the flags (VmFlags) that /proc/self/smaps gives the mapping of an address.

#include "engine/base/aligned_buffer.hpp"
#include "engine/memory/block_recycler.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

namespace rollcast {
namespace {

/// Empty if nothing is mapped there.
std::string flags_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps{"/proc/self/smaps"};
  std::uintptr_t begin = 0, end = 0;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words{line};
    char dash = 0;
    std::uintptr_t from = 0, to = 0;
    if (words >> std::hex >> from >> dash >> to && dash == '-') {
      begin = from;
      end = to;
    } else if (line.starts_with("VmFlags:") && begin <= wanted && wanted < end) {
      return line + ' ';
    }
  }
  return {};
}

bool left_out(const void* address) {
  return flags_at(address).find(" dd ") != std::string::npos;
}

TEST(core_file, leaves_out_weights_and_kv) {
  const auto buffer = aligned_buffer::make((std::size_t{3} << 20) + 1);
  ASSERT_TRUE(buffer);
  EXPECT_TRUE(left_out(buffer->data()));
  EXPECT_TRUE(left_out(buffer->data() + buffer->size() - 1));
}

TEST(core_file, leaves_out_images_also_when_their_memory_is_used_again) {
  block_recycler sut;
  const auto bytes = std::size_t{1} << 20;
  const auto first = static_cast<std::byte*>(sut.take(bytes));
  EXPECT_TRUE(left_out(first));
  EXPECT_TRUE(left_out(first + bytes - 1));
  sut.put_back(first);
  const auto again = sut.take(bytes);
  EXPECT_EQ(again, first);
  EXPECT_TRUE(left_out(again));
  sut.put_back(again);
}

TEST(core_file, has_the_heap) {
  const auto ordinary = std::make_unique<int>(7);
  ASSERT_NE(flags_at(ordinary.get()), "");
  EXPECT_FALSE(left_out(ordinary.get()));
}

} // namespace
} // namespace rollcast
