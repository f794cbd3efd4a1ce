// Goal: the norm, the rotation with its append, and the elementwise kernels are right and give a
// row the same bits in any batch, at any place and on any instruction set.
// Method: double-precision oracles with bounds in ulps; memcmp against a row computed alone; NaN
// in everything that a row may not read.
#include "kernels/dispatch.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/rope.hpp"
#include "tests/oracle/norm.hpp"
#include "tests/oracle/rope.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace rollcast::test {
namespace {

using namespace kernels;

/// Runs `check` once for each instruction set.
template <class F>
void on_every_instruction_set(F check) {
  for (const auto set : instruction_sets()) {
    SCOPED_TRACE(set);
    ASSERT_TRUE(use_instruction_set(set));
    check();
  }
  use_instruction_set("");
}

constexpr std::size_t dims[] = {1, 5, 16, 63, 64, 65, 80, 128, 768, 1000};

TEST(rms_norm, agrees_with_the_double_oracle) {
  on_every_instruction_set([] {
    for (const std::size_t dim : dims) {
      const auto x = pattern(dim, 3, 5.0f), w = pattern(dim, 4);
      std::vector<float> y(dim);
      rms_norm_cpu({x.data(), w.data(), y.data(), dim, dim, dim, 1e-6f}, 0, 1);
      const auto want = oracle::rms_norm(x.data(), w.data(), dim, 1e-6f);
      // The sum is a chain of dim / 64 FMAs and 6 folds, of which the root takes half; then four
      // roundings.
      const double bound = (static_cast<double>(dim) / 128 + 8) * 0x1p-24;
      for (std::size_t d = 0; d < dim; ++d)
        EXPECT_NEAR(want[d], y[d], bound * std::abs(want[d]) + 1e-30) << dim << " at " << d;
    }
  });
}

/// The definition in scalar code: 64 lanes, fma, fold.
float sum_of_squares_in_house_order(const std::vector<float>& x) {
  float lane[64] = {};
  for (std::size_t i = 0; i < x.size(); ++i)
    lane[i % 64] = std::fma(x[i], x[i], lane[i % 64]);
  for (std::size_t half = 32; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j)
      lane[j] += lane[j + half];
  return lane[0];
}

TEST(rms_norm, has_the_bits_of_its_definition_in_any_batch) {
  on_every_instruction_set([] {
    for (const std::size_t dim : dims) {
      const auto row = pattern(dim, 7, 3.0f), w = pattern(dim, 8);
      std::vector<float> want(dim);
      const float mean = sum_of_squares_in_house_order(row) / static_cast<float>(dim);
      const float root = std::sqrt(mean + 1e-5f);
      for (std::size_t d = 0; d < dim; ++d)
        want[d] = row[d] / root * w[d];
      for (const std::size_t rows : {1u, 2u, 33u})
        for (std::size_t at = 0; at < rows; ++at) {
          const std::size_t stride = dim + 3;
          std::vector<float> x(rows * stride, poison);
          std::memcpy(&x[at * stride], row.data(), dim * sizeof(float));
          std::vector<float> y(rows * dim);
          rms_norm_cpu({x.data(), w.data(), y.data(), dim, stride, dim, 1e-5f}, 0, rows);
          ASSERT_EQ(0, std::memcmp(&y[at * dim], want.data(), dim * sizeof(float)))
            << "dim " << dim << " row " << at << " of " << rows;
        }
    }
  });
}

TEST(silu_mul, agrees_with_the_double_oracle_and_keeps_rows_apart) {
  on_every_instruction_set([] {
    for (const std::size_t dim : dims) {
      std::vector<float> x(3 * (2 * dim + 1), poison);
      const auto row = pattern(2 * dim, 5, 20.0f);
      std::memcpy(&x[2 * dim + 1], row.data(), row.size() * sizeof(float));
      std::vector<float> y(3 * dim);
      silu_mul_cpu({x.data(), 2 * dim + 1, y.data(), dim, dim}, 1, 2);
      for (std::size_t d = 0; d < dim; ++d) {
        const double want = oracle::silu_mul(row[d], row[dim + d]);
        EXPECT_NEAR(want, y[dim + d], 5 * 0x1p-24 * std::abs(want)) << dim << " at " << d;
        EXPECT_EQ(0.0f, y[d]) << "row 0 was not asked for";
      }
    }
  });
}

TEST(silu_mul, has_its_limits) {
  const float x[] = {-100.0f, 100.0f, 0.0f, -0.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  float y[4];
  silu_mul_cpu({x, 8, y, 4, 4}, 0, 1);
  EXPECT_EQ(0.0f, y[0]);
  EXPECT_EQ(100.0f, y[1]);
  EXPECT_EQ(0.0f, y[2]);
  EXPECT_EQ(0.0f, y[3]);
}

TEST(widen_row, is_exact_from_any_address) {
  const std::uint16_t bf16[] = {0x3f80, 0xc049, 0x0001, 0xff80};
  const std::uint16_t f16[] = {0x3c00, 0xc248, 0x0001, 0xfc00};
  char odd[1 + sizeof bf16];
  float out[4];
  std::memcpy(odd + 1, bf16, sizeof bf16);
  widen_row_cpu(odd + 1, dtype::bf16, 4, out);
  EXPECT_EQ(1.0f, out[0]);
  EXPECT_EQ(-3.140625f, out[1]);
  EXPECT_EQ(0x1p-133f, out[2]);
  EXPECT_EQ(-INFINITY, out[3]);
  std::memcpy(odd + 1, f16, sizeof f16);
  widen_row_cpu(odd + 1, dtype::f16, 4, out);
  EXPECT_EQ(1.0f, out[0]);
  EXPECT_EQ(-3.140625f, out[1]);
  EXPECT_EQ(0x1p-24f, out[2]);
  EXPECT_EQ(-INFINITY, out[3]);
  const float f32[] = {1.5f, -2.25f};
  widen_row_cpu(f32, dtype::f32, 2, out);
  EXPECT_EQ(-2.25f, out[1]);
}

TEST(rope_table, agrees_with_the_long_double_oracle) {
  constexpr std::size_t positions = 5000;
  for (const auto scaling : {rope_scaling::none, rope_scaling::linear, rope_scaling::llama3}) {
    const rope_params p{128, 500000.0, scaling, 8.0, 1.0, 4.0, 8192};
    std::vector<float> table(positions * p.head_dim);
    rope_table(p, positions, table.data());
    for (std::size_t position : {0u, 1u, 2u, 100u, 4999u})
      for (std::size_t i = 0; i < 64; ++i) {
        const long double angle = static_cast<long double>(position) * oracle::rope_frequency(p, i);
        // Half an ulp of f32 and the error of a double frequency, magnified by the position.
        const double bound = 0x1p-25 + 5000 * 1e-15;
        EXPECT_NEAR(static_cast<double>(std::cos(angle)), table[position * 128 + i], bound);
        EXPECT_NEAR(static_cast<double>(std::sin(angle)), table[position * 128 + 64 + i], bound);
      }
  }
}

TEST(rope_table, of_yarn_agrees_with_the_long_double_oracle_and_is_stretched) {
  // Of DeepSeek-V3, and of Kimi-K2, whose betas are equal.
  for (const auto& [theta, beta_fast] : {std::pair{10000.0, 32.0}, std::pair{50000.0, 1.0}})
    for (const double factor : {1.0, 8.0, 40.0}) {
      rope_params p{64, theta, rope_scaling::yarn, factor, 1.0, 4.0, 4096};
      p.beta_fast = beta_fast;
      p.attention_factor = 1.25;
      constexpr std::size_t positions = 1000;
      std::vector<float> table(positions * p.head_dim);
      rope_table(p, positions, table.data());
      for (std::size_t position : {0u, 1u, 37u, 999u})
        for (std::size_t i = 0; i < 32; ++i) {
          const long double angle =
            static_cast<long double>(position) * oracle::rope_frequency(p, i);
          EXPECT_NEAR(1.25 * static_cast<double>(std::cos(angle)), table[position * 64 + i],
                      0x1p-23);
          EXPECT_NEAR(1.25 * static_cast<double>(std::sin(angle)), table[position * 64 + 32 + i],
                      0x1p-23);
        }
      EXPECT_EQ(oracle::rope_frequency(p, 0), 1.0L) << "the shortest wave is kept";
      EXPECT_NEAR(static_cast<double>(oracle::rope_frequency(p, 31)) * factor,
                  std::pow(theta, -62.0 / 64), 1e-9);
    }
}

/// A layer's rows before the step between qkv and attention.
struct qkv_problem {
  static constexpr std::size_t heads = 3, kv_heads = 2, rows = 20, position0 = 30,
                               block_tokens = 16;
  rope_params rope;
  std::vector<float> qkv, q_norm, k_norm, cos_sin;
  std::vector<row_place> places;
  std::vector<std::byte> cache;
  kv_layout kv;
  qkv_rope_args args;

  qkv_problem(std::size_t dim, dtype type, bool norms)
    : rope{dim, 10000.0, rope_scaling::none, 1.0, 1.0, 4.0, 8192},
      qkv{pattern(rows * (heads + 2 * kv_heads) * dim, 9, 3.0f)}, q_norm{pattern(dim, 10)},
      k_norm{pattern(dim, 11)}, cos_sin(64 * dim) {
    rope_table(rope, 64, cos_sin.data());
    kv = {nullptr, block_tokens, kv_heads, dim, type};
    cache.assign(4 * kv.block_bytes() + 64, std::byte{0xff});
    kv.data = cache.data() + (64 - reinterpret_cast<std::uintptr_t>(cache.data()) % 64);
    for (std::uint32_t r = 0; r < rows; ++r) {
      const auto p = static_cast<std::uint32_t>(position0 + r);
      places.push_back({p, 3 - p / static_cast<std::uint32_t>(block_tokens)});
    }
    args = {qkv.data(),
            (heads + 2 * kv_heads) * dim,
            heads,
            kv_heads,
            norms ? q_norm.data() : nullptr,
            norms ? k_norm.data() : nullptr,
            1e-6f,
            cos_sin.data(),
            places.data(),
            kv};
  }

  float cached(std::size_t row, std::size_t head, std::size_t d, bool value) const {
    const std::size_t slot = places[row].position % block_tokens, lane = slot % kv_group;
    const std::byte* tile =
      kv.data + kv.k_offset(places[row].kv_block, slot, head) + (value ? kv.tile_bytes() : 0);
    const std::size_t at = value ? lane * kv.head_dim + d : d * kv_group + lane;
    if (kv.type == dtype::f32)
      return reinterpret_cast<const float*>(tile)[at];
    return widen_bf16(reinterpret_cast<const std::uint16_t*>(tile)[at]);
  }
};

TEST(qkv_rope_append, agrees_with_the_double_oracle) {
  for (const std::size_t dim : {16u, 64u, 80u, 128u})
    for (const bool norms : {false, true}) {
      qkv_problem p{dim, dtype::f32, norms};
      const auto before = p.qkv;
      qkv_rope_append_cpu(p.args, 0, p.rows);
      for (std::size_t r = 0; r < p.rows; ++r)
        for (std::size_t h = 0; h < p.heads + p.kv_heads; ++h) {
          const float* x = &before[r * p.args.qkv_stride + h * dim];
          const auto& w = h < p.heads ? p.q_norm : p.k_norm;
          const auto normed =
            norms ? oracle::rms_norm(x, w.data(), dim, 1e-6f) : std::vector<double>(x, x + dim);
          const auto want = oracle::rotate(normed, p.rope, p.places[r].position);
          for (std::size_t d = 0; d < dim; ++d) {
            const float got = h < p.heads ? p.qkv[r * p.args.qkv_stride + h * dim + d]
                                          : p.cached(r, h - p.heads, d, false);
            ASSERT_NEAR(want[d], got, 20 * 0x1p-24 * 4) << "row " << r << " head " << h;
          }
        }
      for (std::size_t r = 0; r < p.rows; ++r)
        for (std::size_t h = 0; h < p.kv_heads; ++h)
          for (std::size_t d = 0; d < dim; ++d)
            ASSERT_EQ(before[r * p.args.qkv_stride + (p.heads + p.kv_heads + h) * dim + d],
                      p.cached(r, h, d, true));
    }
}

TEST(qkv_rope_append, rotates_the_first_dimensions_alone_if_it_is_told_so) {
  on_every_instruction_set([] {
    qkv_problem p{64, dtype::f32, false};
    rope_params half = p.rope;
    half.head_dim = 32;
    std::vector<float> table(64 * 32);
    rope_table(half, 64, table.data());
    p.args.cos_sin = table.data();
    p.args.rotary_dim = 32;
    const auto before = p.qkv;
    qkv_rope_append_cpu(p.args, 0, p.rows);
    for (std::size_t r = 0; r < p.rows; ++r)
      for (std::size_t h = 0; h < p.heads + p.kv_heads; ++h) {
        const float* x = &before[r * p.args.qkv_stride + h * 64];
        const auto want =
          oracle::rotate(std::vector<double>(x, x + 32), half, p.places[r].position);
        for (std::size_t d = 0; d < 64; ++d) {
          const float got = h < p.heads ? p.qkv[r * p.args.qkv_stride + h * 64 + d]
                                        : p.cached(r, h - p.heads, d, false);
          if (d < 32)
            ASSERT_NEAR(want[d], got, 20 * 0x1p-24 * 4) << "row " << r << " head " << h;
          else
            ASSERT_EQ(x[d], got) << "row " << r << " head " << h;
        }
      }
  });
}

TEST(qkv_rope_append, rounds_once_to_bf16_and_leaves_other_slots_alone) {
  qkv_problem exact{64, dtype::f32, true}, rounded{64, dtype::bf16, true};
  qkv_rope_append_cpu(exact.args, 0, exact.rows);
  qkv_rope_append_cpu(rounded.args, 0, rounded.rows);
  for (std::size_t r = 0; r < exact.rows; ++r)
    for (std::size_t h = 0; h < exact.kv_heads; ++h)
      for (std::size_t d = 0; d < 64; ++d)
        for (const bool value : {false, true})
          ASSERT_EQ(widen_bf16(round_bf16(exact.cached(r, h, d, value))),
                    rounded.cached(r, h, d, value));
  // Position 29 precedes the first row; its slot still holds the fill.
  exact.places[0] = {29, 3 - 29 / 16};
  EXPECT_TRUE(std::isnan(exact.cached(0, 0, 0, false)));
}

TEST(qkv_rope_append, gives_the_same_bits_row_by_row_and_on_every_instruction_set) {
  qkv_problem want{80, dtype::f32, true};
  qkv_rope_append_cpu(want.args, 0, want.rows);
  on_every_instruction_set([&] {
    qkv_problem got{80, dtype::f32, true};
    for (std::size_t r = got.rows; r > 0; --r)
      qkv_rope_append_cpu(got.args, r - 1, r);
    EXPECT_EQ(0, std::memcmp(want.qkv.data(), got.qkv.data(), want.qkv.size() * sizeof(float)));
    EXPECT_EQ(0, std::memcmp(want.kv.data, got.kv.data, 4 * want.kv.block_bytes()));
  });
}

} // namespace
} // namespace rollcast::test
