// Goal: a weight frame survives its way over the wire, and no bytes whatever can do harm.
// Method: round trips of random frames; truncations, flipped header bytes, unknown kinds. Seeds are
// printed with a failure.

#include "cluster/weights/weight_frame.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

weight_frame random_frame(prng& rng) {
  weight_frame f;
  f.kind = static_cast<weight_message>(1 + rng.below(4));
  f.code = static_cast<errc>(rng.below(256));
  f.update = rng.next();
  f.attempt = rng.next();
  f.slice = static_cast<std::uint32_t>(rng.next());
  f.slice_bytes = static_cast<std::uint32_t>(rng.next());
  f.manifest = {rng.next(), rng.next()};
  return f;
}

TEST(weight_frame, comes_back_as_it_was_sent) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    prng rng{seed};
    const auto frame = random_frame(rng);
    const auto back = decode_weight_frame(encode(frame));
    ASSERT_TRUE(back) << "seed " << seed;
    EXPECT_EQ(*back, frame) << "seed " << seed;
  }
}

TEST(weight_frame, has_fixed_little_endian_bytes) {
  const weight_frame frame{
    .kind = weight_message::slice, .update = 0x0102030405060708u, .slice = 5, .manifest = {9, 7}};
  const auto bytes = encode(frame);
  EXPECT_EQ(bytes[0], std::byte{'R'});
  EXPECT_EQ(bytes[3], std::byte{'1'});
  EXPECT_EQ(bytes[4], std::byte{2});
  EXPECT_EQ(bytes[8], std::byte{8});
  EXPECT_EQ(bytes[15], std::byte{1});
  EXPECT_EQ(bytes[24], std::byte{5});
  EXPECT_EQ(bytes[32], std::byte{9});
  EXPECT_EQ(bytes[40], std::byte{7});
}

TEST(weight_frame, refuses_other_sizes_magics_and_kinds) {
  prng rng{1};
  const auto good = encode(random_frame(rng));
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(decode_weight_frame(std::span{good}.first(size))) << size;
  for (std::size_t at = 0; at < 4; ++at) {
    auto bad = good;
    bad[at] ^= std::byte{1};
    const auto said = decode_weight_frame(bad);
    ASSERT_FALSE(said);
    EXPECT_EQ(said.error().code, errc::frame_malformed);
  }
  for (const unsigned kind : {0u, 5u, 255u}) {
    auto bad = good;
    bad[4] = static_cast<std::byte>(kind);
    EXPECT_FALSE(decode_weight_frame(bad)) << kind;
  }
}

} // namespace
} // namespace rollcast
