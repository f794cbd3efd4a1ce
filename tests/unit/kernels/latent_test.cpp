// Goal: attention over a latent cache, where values are part of the keys, has the bits of attention
// over keys and values that are stored apart; and the step before it puts every part in its place.
// Method: memcmp against the plain kernel, whose values are copied from the keys; chunks, shares of
// heads and instruction sets of every kind; a double oracle for the step before; NaN in every slot
// that a row may not see.
#include "kernels/dispatch.hpp"
#include "kernels/kv_copy.hpp"
#include "kernels/latent.hpp"
#include "tests/oracle/norm.hpp"
#include "tests/oracle/rope.hpp"
#include "tests/unit/kernels/attention_problem.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace rollcast::test {
namespace {

using namespace kernels;

template <class F>
void on_every_instruction_set(F check) {
  for (const auto set : instruction_sets()) {
    SCOPED_TRACE(set);
    ASSERT_TRUE(use_instruction_set(set));
    check();
  }
  use_instruction_set("");
}

/// The bits that attention must have: values stored apart, computed by the plain kernel in one
/// call.
std::vector<float> plain(attention_shape shape, std::size_t length) {
  const std::size_t latent = shape.latent_dim;
  shape.latent_dim = 0;
  shape.shares = 1;
  attention_problem problem{shape, length, 16, 7};
  problem.v = problem.k;
  problem.append(0, length);
  std::vector<float> wide, out;
  problem.attend(0, length, 32, wide);
  for (std::size_t i = 0; i < length * shape.heads; ++i)
    out.insert(out.end(), &wide[i * shape.head_dim], &wide[i * shape.head_dim] + latent);
  return out;
}

constexpr attention_shape shapes[] = {
  {4, 1, 80, dtype::f32, 64},    {4, 1, 80, dtype::bf16, 64},    {5, 1, 48, dtype::f32, 32},
  {16, 1, 576, dtype::f32, 512}, {64, 1, 576, dtype::bf16, 512}, {6, 1, 32, dtype::bf16, 16},
};

TEST(latent_attention, has_the_bits_of_values_that_are_stored_apart) {
  constexpr std::size_t length = 131;
  for (const auto& shape : shapes) {
    SCOPED_TRACE(std::to_string(shape.heads) + "x" + std::to_string(shape.head_dim));
    const auto want = plain(shape, length);
    on_every_instruction_set([&] {
      for (const std::size_t chunk : {1u, 7u, 64u, 131u}) {
        if (chunk == 1 && shape.head_dim > 100)
          continue; // slow, and 7 tells as much
        attention_problem got{shape, length, chunk == 7 ? 64u : 16u, 7, chunk};
        std::vector<float> out;
        for (std::size_t begin = 0; begin < length; begin += chunk) {
          const std::size_t end = std::min(length, begin + chunk);
          got.append(begin, end);
          got.attend(begin, end, 32, out);
        }
        ASSERT_EQ(want.size(), out.size());
        EXPECT_EQ(0, std::memcmp(want.data(), out.data(), want.size() * sizeof(float)))
          << "chunks of " << chunk;
      }
    });
  }
}

TEST(latent_attention, has_the_same_bits_however_heads_are_shared_out) {
  attention_shape shape{12, 1, 80, dtype::f32, 64};
  const auto want = plain(shape, 70);
  for (const std::size_t shares : {1u, 2u, 3u, 4u, 12u}) {
    shape.shares = shares;
    attention_problem got{shape, 70, 16, 7};
    got.append(0, 70);
    std::vector<float> out;
    got.attend(0, 70, 32, out);
    EXPECT_EQ(0, std::memcmp(want.data(), out.data(), want.size() * sizeof(float))) << shares;
  }
}

TEST(latent_attention, copies_slots_of_a_cache_without_values) {
  for (const auto type : {dtype::f32, dtype::bf16}) {
    const attention_shape shape{4, 1, 80, type, 64};
    attention_problem want{shape, 96, 48, 3, 1}, got{shape, 96, 48, 3, 1};
    want.append(0, 40);
    got.append(0, 40);
    const std::uint32_t from = got.table[0], to = got.table[1];
    const kv_slots copies[] = {{from, to, 3, 37}};
    copy_kv_cpu(got.kv, copies, 1, 0, 1);
    std::copy_n(want.k.begin(), 48 * 80, want.k.begin() + 48 * 80);
    want.append(48 + 3, 48 + 37);
    EXPECT_EQ(0, std::memcmp(want.kv.data, got.kv.data, 2 * got.kv.block_bytes()));
  }
}

/// Rows before the step, with a cache full of NaN.
struct latent_problem {
  static constexpr std::size_t heads = 3, nope = 24, turned = 16, rank = 64, rows = 20,
                               position0 = 30, q_width = heads * (nope + turned),
                               kv_width = rank + turned;
  rope_params rope{turned, 10000.0};
  std::vector<float> q = pattern(rows * q_width, 3, 2.0f),
                     kv_rows = pattern(rows * kv_width, 4, 2.0f), norm = pattern(rank, 5),
                     cos_sin = std::vector<float>(64 * turned),
                     q_latent = std::vector<float>(rows * heads * kv_width, poison);
  std::vector<row_place> places;
  std::vector<std::byte> cache;
  kv_layout kv;
  latent_append_args args;

  explicit latent_problem(dtype type) {
    rope_table(rope, 64, cos_sin.data());
    kv = {nullptr, 16, 1, kv_width, type, rank};
    cache.assign(4 * kv.block_bytes() + 64, std::byte{0xff});
    kv.data = cache.data() + (64 - reinterpret_cast<std::uintptr_t>(cache.data()) % 64);
    for (std::uint32_t r = 0; r < rows; ++r) {
      const auto p = static_cast<std::uint32_t>(position0 + r);
      places.push_back({p, 3 - p / 16});
    }
    args = {q.data(),    q_width, kv_rows.data(), kv_width,      heads,           nope, turned,
            norm.data(), 1e-6f,   cos_sin.data(), places.data(), q_latent.data(), kv};
  }

  float cached(std::size_t row, std::size_t d) const {
    const std::size_t slot = places[row].position % 16;
    const std::byte* tile = kv.data + kv.k_offset(places[row].kv_block, slot, 0);
    if (kv.type == dtype::f32)
      return reinterpret_cast<const float*>(tile)[d * kv_group + slot];
    return widen_bf16(reinterpret_cast<const std::uint16_t*>(tile)[d * kv_group + slot]);
  }

  /// `turned` neighbours at `x`, rotated in pairs, in double.
  std::vector<double> rotated(const float* x, std::size_t row) const {
    std::vector<double> halves;
    for (const std::size_t first : {0u, 1u})
      for (std::size_t i = 0; i < turned / 2; ++i)
        halves.push_back(x[2 * i + first]);
    const auto y = oracle::rotate(halves, rope, places[row].position);
    std::vector<double> out;
    for (std::size_t i = 0; i < turned / 2; ++i)
      out.insert(out.end(), {y[i], y[turned / 2 + i]});
    return out;
  }
};

TEST(latent_append, agrees_with_the_double_oracle) {
  latent_problem p{dtype::f32};
  latent_append_cpu(p.args, 0, p.rows);
  for (std::size_t r = 0; r < p.rows; ++r) {
    for (std::size_t h = 0; h < p.heads; ++h) {
      const float* got = &p.q_latent[(r * p.heads + h) * p.kv_width];
      const auto want = p.rotated(&p.q[r * p.q_width + h * (p.nope + p.turned) + p.nope], r);
      EXPECT_TRUE(std::isnan(got[0]) && std::isnan(got[p.rank - 1])) << "not this step's place";
      for (std::size_t d = 0; d < p.turned; ++d)
        ASSERT_NEAR(want[d], got[p.rank + d], 1e-6) << "row " << r << " head " << h;
    }
    const float* kv = &p.kv_rows[r * p.kv_width];
    const auto latent = oracle::rms_norm(kv, p.norm.data(), p.rank, 1e-6f);
    for (std::size_t d = 0; d < p.rank; ++d)
      ASSERT_NEAR(latent[d], p.cached(r, d), 1e-6) << "row " << r;
    const auto key = p.rotated(kv + p.rank, r);
    for (std::size_t d = 0; d < p.turned; ++d)
      ASSERT_NEAR(key[d], p.cached(r, p.rank + d), 1e-6) << "row " << r;
  }
}

TEST(latent_append, rounds_once_and_gives_the_same_bits_row_by_row_on_every_instruction_set) {
  latent_problem exact{dtype::f32}, rounded{dtype::bf16};
  latent_append_cpu(exact.args, 0, exact.rows);
  latent_append_cpu(rounded.args, 0, rounded.rows);
  for (std::size_t r = 0; r < exact.rows; ++r)
    for (std::size_t d = 0; d < exact.kv_width; ++d)
      ASSERT_EQ(widen_bf16(round_bf16(exact.cached(r, d))), rounded.cached(r, d));
  on_every_instruction_set([&] {
    latent_problem got{dtype::f32};
    for (std::size_t r = got.rows; r > 0; --r)
      latent_append_cpu(got.args, r - 1, r);
    EXPECT_EQ(0, std::memcmp(exact.q_latent.data(), got.q_latent.data(),
                             got.q_latent.size() * sizeof(float)));
    EXPECT_EQ(0, std::memcmp(exact.kv.data, got.kv.data, 4 * got.kv.block_bytes()));
  });
}

} // namespace
} // namespace rollcast::test
