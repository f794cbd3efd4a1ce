// Goal: a KV frame survives its way over the wire, and no bytes whatever can do harm.
// Method: round trips of random frames; random bytes, truncations and flipped header bytes. Seeds
// are printed with a failure.

#include "cluster/transport/kv_frame.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace rollcast {
namespace {

kv_frame random_frame(prng& rng) {
  kv_frame f;
  f.kind = static_cast<kv_message>(1 + rng.below(8));
  f.code = static_cast<errc>(rng.below(256));
  f.pull = rng.next();
  f.holder.value = rng.next();
  f.response.value = rng.next();
  f.tokens = static_cast<std::uint32_t>(rng.next());
  f.part = static_cast<std::uint32_t>(rng.next());
  f.bytes = rng.next();
  f.part_bytes = static_cast<std::uint32_t>(rng.next());
  f.prefix = {rng.next(), rng.next()};
  f.content = {rng.next(), rng.next()};
  f.weights = {rng.next(), rng.next()};
  return f;
}

TEST(kv_frame, comes_back_as_it_was_sent) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    prng rng{seed};
    const auto frame = random_frame(rng);
    const auto back = decode_kv_frame(encode(frame));
    ASSERT_TRUE(back) << "seed " << seed;
    EXPECT_EQ(*back, frame) << "seed " << seed;
  }
}

TEST(kv_frame, has_fixed_little_endian_bytes) {
  kv_frame frame{.kind = kv_message::want, .pull = 0x0102030405060708u, .part = 5};
  const auto bytes = encode(frame);
  EXPECT_EQ(bytes[0], std::byte{'R'});
  EXPECT_EQ(bytes[3], std::byte{'2'});
  EXPECT_EQ(bytes[4], std::byte{3});
  EXPECT_EQ(bytes[8], std::byte{8});
  EXPECT_EQ(bytes[15], std::byte{1});
  EXPECT_EQ(bytes[36], std::byte{5});
}

TEST(kv_frame, refuses_other_sizes_magics_and_kinds) {
  prng rng{1};
  const auto good = encode(random_frame(rng));
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(decode_kv_frame(std::span{good}.first(size))) << size;
  for (std::size_t at = 0; at < 4; ++at) {
    auto bad = good;
    bad[at] ^= std::byte{1};
    const auto said = decode_kv_frame(bad);
    ASSERT_FALSE(said);
    EXPECT_EQ(said.error().code, errc::frame_malformed);
  }
  auto bad = good;
  bad[4] = std::byte{0};
  EXPECT_FALSE(decode_kv_frame(bad));
  bad[4] = std::byte{9};
  EXPECT_FALSE(decode_kv_frame(bad));
}

} // namespace
} // namespace rollcast
