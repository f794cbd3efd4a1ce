// Goal: copies of slots and images are the CPU's, byte for byte.
// Method: random copies, some of which read what others wrote; a cache packed and unpacked into
// another with other blocks; what is not copied stays.
#include "kernels/cuda/kv.hpp"
#include "kernels/kv_copy.hpp"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/pattern.hpp"

namespace rollcast::test {
namespace {

std::vector<std::uint16_t> noise(std::size_t n, std::uint64_t seed) {
  prng random{seed};
  std::vector<std::uint16_t> words(n);
  for (auto& w : words)
    w = static_cast<std::uint16_t>(random.next());
  return words;
}

TEST(cuda_kv, copies_slots_in_their_order) {
  kernels::kv_layout kv{nullptr, 32, 3, 64, kernels::dtype::bf16};
  const std::uint32_t blocks = 5;
  auto want = noise(blocks * kv.block_bytes() / 2, 1);
  const on_device<std::uint16_t> cache{want};
  prng random{2};
  std::vector<kernels::kv_slots> copies;
  for (int i = 0; i < 12; ++i) {
    const auto from = static_cast<std::uint32_t>(random.below(blocks));
    const auto begin = static_cast<std::uint32_t>(random.below(32));
    const auto end = begin + 1 + static_cast<std::uint32_t>(random.below(32 - begin));
    copies.push_back({from,
                      (from + 1 + static_cast<std::uint32_t>(random.below(blocks - 1))) % blocks,
                      begin, end});
  }
  kv.data = reinterpret_cast<std::byte*>(want.data());
  kernels::copy_kv_cpu(kv, copies.data(), copies.size(), 0, kv.kv_heads);
  kv.data = reinterpret_cast<std::byte*>(cache.data());
  const on_device<kernels::kv_slots> on{copies};
  const on_device<std::uint32_t> count{std::vector<std::uint32_t>{12}};
  must(cuda::copy_kv(kv, on.data(), count.data(), nullptr));
  EXPECT_TRUE(same_bits(cache.values(), want));
}

TEST(cuda_kv, packs_and_unpacks_images) {
  const std::size_t layers = 3, groups = 5;
  kernels::kv_layout kv{nullptr, 32, 2, 64, kernels::dtype::bf16};
  const std::size_t layer = 4 * kv.block_bytes();
  const auto from = noise(layers * layer / 2, 3);
  const on_device<std::uint16_t> source{from}, target{from.size()};
  const on_device<std::byte> image{layers * groups * kv.group_bytes()};
  const on_device<std::uint32_t> blocks{std::vector<std::uint32_t>{3, 0, 2}},
    others{std::vector<std::uint32_t>{1, 3, 0}};
  kv.data = reinterpret_cast<std::byte*>(source.data());
  must(cuda::pack_kv({kv, layers, layer}, blocks.data(), groups, image.data(), nullptr));
  kv.data = reinterpret_cast<std::byte*>(target.data());
  must(cuda::unpack_kv({kv, layers, layer}, others.data(), groups, image.data(), nullptr));
  const auto to = target.values();
  const std::size_t group = kv.group_bytes() / 2;
  for (std::size_t l = 0; l < layers; ++l) {
    const auto at = [&](std::size_t block, std::size_t half) {
      return l * layer / 2 + (block * 2 + half) * group;
    };
    const std::size_t pairs[5][2] = {{at(3, 0), at(1, 0)},
                                     {at(3, 1), at(1, 1)},
                                     {at(0, 0), at(3, 0)},
                                     {at(0, 1), at(3, 1)},
                                     {at(2, 0), at(0, 0)}};
    for (const auto& [a, b] : pairs)
      EXPECT_EQ(0, std::memcmp(from.data() + a, to.data() + b, group * 2));
    EXPECT_EQ(to[at(0, 1)], 0xffff) << "the sixth group is not touched";
    EXPECT_EQ(to[at(2, 0)], 0xffff) << "nor another block";
  }
}

} // namespace
} // namespace rollcast::test
