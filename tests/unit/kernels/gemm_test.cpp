// Goal: a product is right, and every element of it is the same bits whatever else is computed.
// Method: against double precision with a derived bound, against the definition one scalar at a
// time, and against itself: alone and in batches, whole and in panel ranges, on every instruction
// set.
#include "kernels/dispatch.hpp"
#include "kernels/gemm.hpp"
#include "tests/unit/kernels/gemm_problem.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>

namespace rollcast::test {
namespace {

using kernels::arithmetic;
using kernels::dtype;

constexpr std::size_t awkward_rows[] = {1,  2,  3,  4,  7,  8,  9,  13, 14,  15,  16, 17,
                                        26, 27, 31, 32, 33, 63, 64, 65, 127, 128, 129};

struct profile_case {
  arithmetic how;
  dtype source;
};
constexpr profile_case profiles[] = {
  {arithmetic::f32, dtype::bf16},  {arithmetic::f32, dtype::f32},  {arithmetic::f32, dtype::f16},
  {arithmetic::bf16, dtype::bf16}, {arithmetic::bf16, dtype::f32}, {arithmetic::bf16, dtype::f16},
};

std::string name(const profile_case& p) {
  const char* types[] = {"f32", "bf16", "f16"};
  return std::string{p.how == arithmetic::f32 ? "f32" : "bf16"} + " arithmetic, "
         + types[static_cast<std::size_t>(p.source)] + " weights";
}

/// Runs `body` with each instruction set of this machine, then restores the best.
template <class Body>
void with_every_instruction_set(Body body) {
  ASSERT_FALSE(kernels::instruction_sets().empty()) << "this machine has no FMA";
  for (const auto set : kernels::instruction_sets()) {
    SCOPED_TRACE(set);
    ASSERT_TRUE(kernels::use_instruction_set(set));
    body();
  }
  ASSERT_TRUE(kernels::use_instruction_set(""));
}

bool same_bits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

TEST(gemm, is_near_the_product_in_double) {
  // A chain of k FMAs, a bias and a sum differ from exact by at most (k + 2) u times the sum of the
  // magnitudes, with u = 2^-24 and 1 % for its higher powers.
  for (const auto& p : profiles) {
    SCOPED_TRACE(name(p));
    for (const std::size_t rows : awkward_rows) {
      const std::size_t n = 33 + rows % 7, k = 2 * rows + 61;
      const weight_case w{p.source, p.how, n, k, rows};
      const auto x = numbers(rows * k, 2), bias = numbers(n, 3), before = numbers(rows * n, 4);
      const auto y = multiply(w, p.how, x, rows, {bias.data(), &before});
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < n; ++c) {
          double sum = double{bias[c]} + double{before[r * n + c]};
          double size = std::fabs(bias[c]) + std::fabs(before[r * n + c]);
          for (std::size_t i = 0; i < k; ++i) {
            float a = x[r * k + i];
            if (p.how == arithmetic::bf16)
              a = kernels::widen_bf16(kernels::round_bf16(a));
            const double term = double{a} * double{w.value(c, i)};
            sum += term;
            size += std::fabs(term);
          }
          const double bound = 1.01 * static_cast<double>(k + 2) * 0x1p-24 * size;
          ASSERT_NEAR(y[r * n + c], sum, bound) << "row " << r << " of " << rows << " column " << c;
        }
    }
  }
}

TEST(gemm, is_the_documented_chain_bit_for_bit) {
  with_every_instruction_set([] {
    for (const auto& p : profiles)
      for (const std::size_t k : {1u, 2u, 3u, 64u, 129u}) {
        const std::size_t rows = 15, n = 70;
        const weight_case w{p.source, p.how, n, k, k};
        const auto x = numbers(rows * k, 5), bias = numbers(n, 6), before = numbers(rows * n, 7);
        const auto plain = multiply(w, p.how, x, rows);
        const auto biased = multiply(w, p.how, x, rows, {bias.data(), nullptr});
        const auto added = multiply(w, p.how, x, rows, {bias.data(), &before});
        for (std::size_t i = 0; i < rows * n; ++i) {
          const float sum = chain(w, p.how, &x[i / n * k], i % n);
          ASSERT_EQ(bits_of(plain[i]), bits_of(sum)) << name(p) << " k " << k << " at " << i;
          ASSERT_EQ(bits_of(biased[i]), bits_of(sum + bias[i % n]));
          ASSERT_EQ(bits_of(added[i]), bits_of((sum + bias[i % n]) + before[i]));
        }
      }
  });
}

TEST(gemm, row_is_independent_of_its_batch) {
  const std::size_t n = 96 + 40, k = 131;
  with_every_instruction_set([=] {
    for (const auto& p : profiles) {
      const weight_case w{p.source, p.how, n, k, 8};
      const auto row = numbers(k, 9);
      const auto alone = multiply(w, p.how, row, 1);
      for (const std::size_t rows : awkward_rows) {
        auto x = numbers(rows * k, 10 + rows);
        const std::size_t at = (rows * 7 + 3) % rows;
        std::copy(row.begin(), row.end(), x.begin() + static_cast<std::ptrdiff_t>(at * k));
        const auto y = multiply(w, p.how, x, rows);
        ASSERT_TRUE(same_bits(&y[at * n], alone.data(), n))
          << name(p) << ": row " << at << " of " << rows;
      }
    }
  });
}

TEST(gemm, garbage_in_other_rows_does_not_leak) {
  const std::size_t n = 64, k = 37;
  const float garbage[] = {std::numeric_limits<float>::quiet_NaN(),
                           std::numeric_limits<float>::infinity(), -0.0f, 1e-42f, 3e38f};
  with_every_instruction_set([&] {
    for (const auto& p : profiles) {
      const weight_case w{p.source, p.how, n, k, 11};
      const auto row = numbers(k, 12);
      const auto alone = multiply(w, p.how, row, 1);
      for (const std::size_t rows : {2u, 5u, 13u, 14u, 29u})
        for (std::size_t at = 0; at < rows; ++at) {
          std::vector<float> x(rows * k);
          for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = garbage[i % std::size(garbage)];
          std::copy(row.begin(), row.end(), x.begin() + static_cast<std::ptrdiff_t>(at * k));
          const auto y = multiply(w, p.how, x, rows);
          ASSERT_TRUE(same_bits(&y[at * n], alone.data(), n))
            << name(p) << ": row " << at << " of " << rows;
        }
    }
  });
}

TEST(gemm, any_split_into_panel_ranges_gives_the_same_bits) {
  const std::size_t n = 32 * 11 + 5, k = 90;
  const std::vector<std::size_t> splits[] = {{1}, {11}, {3, 4, 9}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}};
  for (const auto& p : profiles) {
    const weight_case w{p.source, p.how, n, k, 13};
    for (const std::size_t rows : {1u, 2u, 4u, 5u, 40u}) {
      const auto x = numbers(rows * k, 14);
      const auto whole = multiply(w, p.how, x, rows);
      for (const auto& edges : splits) {
        const auto parts = multiply(w, p.how, x, rows, {}, edges);
        ASSERT_TRUE(same_bits(parts.data(), whole.data(), whole.size())) << name(p);
      }
    }
  }
}

TEST(gemm, panels_larger_than_the_cache_give_the_same_bits) {
  const std::size_t n = 40, k = 9001; // 576 KB of bf16 a panel: k goes in blocks from 14 rows on
  for (const auto& p : profiles) {
    const weight_case w{p.source, p.how, n, k, 15};
    const std::size_t rows = 120;
    const auto x = numbers(rows * k, 16), bias = numbers(n, 17);
    const auto batch = multiply(w, p.how, x, rows, {bias.data(), nullptr});
    for (const std::size_t at : {0u, 13u, 103u, 104u, 119u}) {
      const auto begin = x.begin() + static_cast<std::ptrdiff_t>(at * k);
      const std::vector<float> row(begin, begin + static_cast<std::ptrdiff_t>(k));
      const auto alone = multiply(w, p.how, row, 1, {bias.data(), nullptr});
      ASSERT_TRUE(same_bits(&batch[at * n], alone.data(), n)) << name(p) << " row " << at;
    }
  }
}

TEST(gemm, matrices_packed_together_equal_matrices_packed_alone) {
  const std::size_t k = 50, first = 45, second = 70;
  for (const auto& p : profiles) {
    const weight_case a{p.source, p.how, first, k, 18}, b{p.source, p.how, second, k, 19};
    weight_case both{p.source, p.how, first + second, k, 20};
    both.packed = line_buffer{kernels::packed_bytes(both.packed_type, both.n, k)};
    kernels::pack_weights(b.source.data(), p.source, second, k, first, both.packed.data(),
                          both.packed_type, both.n);
    kernels::pack_weights(a.source.data(), p.source, first, k, 0, both.packed.data(),
                          both.packed_type, both.n);
    const auto x = numbers(3 * k, 21);
    const auto y = multiply(both, p.how, x, 3);
    const auto ya = multiply(a, p.how, x, 3), yb = multiply(b, p.how, x, 3);
    for (std::size_t r = 0; r < 3; ++r) {
      ASSERT_TRUE(same_bits(&y[r * both.n], &ya[r * first], first)) << name(p);
      ASSERT_TRUE(same_bits(&y[r * both.n + first], &yb[r * second], second)) << name(p);
    }
  }
}

TEST(gemm, unaligned_checkpoint_rows_pack_the_same) {
  const weight_case w{dtype::bf16, arithmetic::f32, 33, 21, 22};
  std::vector<std::byte> shifted(w.source.size() + 1);
  std::copy(w.source.begin(), w.source.end(), shifted.begin() + 1);
  line_buffer out{kernels::packed_bytes(dtype::bf16, w.n, w.k)};
  kernels::pack_weights(shifted.data() + 1, dtype::bf16, w.n, w.k, 0, out.data(), dtype::bf16, w.n);
  EXPECT_EQ(0,
            std::memcmp(out.data(), w.packed.data(), kernels::packed_bytes(dtype::bf16, 33, 21)));
}

TEST(gemm, rows_that_lie_apart_pack_as_if_they_lay_together) {
  const std::size_t stride = 150;
  const auto x = numbers(40 * stride, 24);
  with_every_instruction_set([&] {
    for (const auto how : {arithmetic::f32, arithmetic::bf16})
      for (const std::size_t k : {1u, 7u, 64u, 129u})
        for (const std::size_t rows : awkward_rows) {
          std::vector<std::uint32_t> chosen;
          std::vector<float> together;
          for (std::uint32_t r = 0; r < rows; ++r) {
            chosen.push_back(r * 23 % 40);
            const auto from = x.begin() + static_cast<std::ptrdiff_t>(chosen.back() * stride);
            together.insert(together.end(), from, from + static_cast<std::ptrdiff_t>(k));
          }
          const std::size_t bytes = kernels::packed_rows_bytes(how, rows, k);
          line_buffer apart{bytes}, want{bytes};
          const std::size_t tiles = kernels::row_tile_count(how, rows);
          kernels::pack_rows(together.data(), k, {want.data(), rows, k, how}, 0, tiles);
          for (std::size_t t = 0; t < tiles; ++t)
            kernels::pack_rows_of(x.data(), stride, chosen.data(), {apart.data(), rows, k, how}, t,
                                  t + 1);
          ASSERT_EQ(0, std::memcmp(want.data(), apart.data(), bytes)) << rows << " rows of " << k;
        }
  });
}

TEST(gemm, leaves_the_rounding_mode_as_it_was) {
  const weight_case w{dtype::bf16, arithmetic::bf16, 32, 8, 23};
  with_every_instruction_set([&] {
    multiply(w, arithmetic::bf16, numbers(16 * 8, 24), 16);
    volatile float smallest = 0x1p-126f;
    EXPECT_EQ(smallest * 0.5f, 0x1p-127f) << "subnormals are flushed outside of the product";
  });
}

TEST(dispatch, refuses_an_instruction_set_that_it_does_not_list) {
  EXPECT_FALSE(kernels::use_instruction_set("sse9"));
  EXPECT_TRUE(kernels::use_instruction_set(""));
}

} // namespace
} // namespace rollcast::test
