// Goal: the bf16 profile has one definition: what vdpbf16ps does, on machines with and without it.
// Method: many random lanes with exponents drawn near every edge (subnormal, tiny after rounding,
// overflow, infinities, NaN, -0), through the instruction, the scalar model of gemm_problem.hpp,
// the portable flush that runs where FMAs cannot flush by themselves, and whole products.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/unit/kernels/gemm_bf16_test.cpp"
// foreach_target.h must come before anything that differs between targets.
// clang-format off
#include <hwy/foreach_target.h>
#include "kernels/cpu/gemm_flush-inl.hpp"
// clang-format on

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

/// acc[i] = the portable step of lane i; `count` is a multiple of 16.
void portable_steps(const float* a, const float* b, float* acc, std::size_t count) {
  const hn::CappedTag<float, 16> d;
  for (std::size_t i = 0; i < count; i += hn::Lanes(d))
    hn::StoreU(fma_flush(d, flush_inputs(d, hn::LoadU(d, a + i)),
                         flush_inputs(d, hn::LoadU(d, b + i)), hn::LoadU(d, acc + i)),
               d, acc + i);
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/dispatch.hpp"
#include "tests/unit/kernels/gemm_problem.hpp"

#include <gtest/gtest.h>

#include <array>
#include <string>
#if HWY_ARCH_X86
#include <immintrin.h>
#endif

namespace rollcast::kernels {
HWY_EXPORT(portable_steps);

static void run_portable_steps(const float* a, const float* b, float* acc) {
  HWY_DYNAMIC_DISPATCH(portable_steps)(a, b, acc, 16);
}
} // namespace rollcast::kernels

namespace rollcast::test {
namespace {

constexpr std::size_t lanes = 16;

/// Sixteen accumulators and pairs of factors.
struct lane_case {
  std::array<float, lanes> acc;
  std::array<std::uint32_t, lanes> a;
  std::array<std::uint32_t, lanes> b;

  static float factor(std::uint32_t pair, bool odd) {
    return kernels::widen_bf16(static_cast<std::uint16_t>(odd ? pair >> 16 : pair));
  }
};

/// Draws floats whose exponent field lies in a range.
struct lane_source {
  word_source words;

  std::uint32_t with_exponent(std::uint32_t low, std::uint32_t high) {
    const std::uint32_t exponent = low + words.bits() % (high - low + 1);
    return (words.bits() & 0x807fffffu) | exponent << 23;
  }
  std::uint32_t pair(std::uint32_t low, std::uint32_t high) {
    return with_exponent(low, high) >> 16 | (with_exponent(low, high) & 0xffff0000u);
  }
  static std::uint32_t some(word_source& words, std::uint32_t bits, std::uint32_t one_in,
                            std::uint32_t instead) {
    return words.bits() % one_in == 0 ? instead : bits;
  }

  /// `kind`: anything at all; sums near the smallest normal; sums that cross it by an ulp or less;
  /// sums near overflow; many specials.
  lane_case draw(int kind) {
    lane_case lane;
    for (std::size_t i = 0; i < lanes; ++i) {
      std::uint32_t acc = words.bits();
      lane.a[i] = words.bits();
      lane.b[i] = words.bits();
      if (kind == 1) {
        acc = with_exponent(0, 3);
        lane.a[i] = pair(30, 62);
        lane.b[i] = pair(60, 66);
      } else if (kind == 2) {
        acc = (words.bits() & 0x80000000u) | (0x00800000u + words.bits() % 3);
        lane.a[i] = pair(46, 52);
        lane.b[i] = pair(46, 54);
      } else if (kind == 3) {
        acc = with_exponent(250, 254);
        lane.a[i] = pair(186, 192);
        lane.b[i] = pair(186, 192);
      } else if (kind == 4) {
        acc = some(words, with_exponent(0, 255), 3, words.bits() & 0x80000000u);
        lane.a[i] = some(words, words.bits() & 0xff80ff80u, 3, 0x80000000u);
        lane.b[i] = some(words, pair(0, 255), 3, 0x00008001u);
      }
      lane.acc[i] = std::bit_cast<float>(acc);
    }
    return lane;
  }
};

constexpr int kinds = 5;
constexpr std::size_t draws = 1'000'000; // 16 million lanes, two steps each

#if HWY_ARCH_X86
__attribute__((target("avx512f,avx512bf16"), noinline)) void instruction(lane_case& lane) {
  const __m512 sum =
    _mm512_dpbf16_ps(_mm512_loadu_ps(lane.acc.data()), (__m512bh)_mm512_loadu_si512(lane.a.data()),
                     (__m512bh)_mm512_loadu_si512(lane.b.data()));
  _mm512_storeu_ps(lane.acc.data(), sum);
}
#else
void instruction(lane_case&) {}
#endif

bool machine_has_the_instruction() {
  const auto sets = kernels::instruction_sets();
  return !sets.empty() && sets[0] == "avx512-bf16";
}

std::string describe(const lane_case& lane, std::size_t i) {
  char text[96];
  std::snprintf(text, sizeof text, "acc %a a %08x b %08x", static_cast<double>(lane.acc[i]),
                lane.a[i], lane.b[i]);
  return text;
}

TEST(gemm_bf16, model_equals_the_instruction) {
  if (!machine_has_the_instruction())
    GTEST_SKIP() << "this machine has no AVX512-BF16, so there is nothing to compare with";
  lane_source source{word_source{1}};
  std::size_t on_the_edge = 0;
  for (std::size_t draw = 0; draw < draws; ++draw) {
    const lane_case before = source.draw(static_cast<int>(draw % kinds));
    lane_case after = before;
    instruction(after);
    for (std::size_t i = 0; i < lanes; ++i) {
      float sum = before.acc[i];
      for (const bool odd : {true, false})
        sum =
          bf16_step(lane_case::factor(before.a[i], odd), lane_case::factor(before.b[i], odd), sum);
      on_the_edge += std::fabs(sum) == 0x1p-126f ? 1 : 0;
      ASSERT_EQ(bits_of(sum), bits_of(after.acc[i])) << describe(before, i);
    }
  }
  EXPECT_GT(on_the_edge, draws / 100) << "the lanes no longer visit the edge of the normal range";
}

TEST(gemm_bf16, portable_step_equals_the_model) {
  ASSERT_FALSE(kernels::instruction_sets().empty()) << "this machine has no FMA";
  lane_source source{word_source{2}};
  for (std::size_t draw = 0; draw < draws / 2; ++draw) {
    const lane_case lane = source.draw(static_cast<int>(draw % kinds));
    std::array<float, lanes> a, b, sum;
    for (std::size_t i = 0; i < lanes; ++i) {
      a[i] = lane_case::factor(lane.a[i], false);
      b[i] = lane_case::factor(lane.b[i], false);
      sum[i] = without_subnormals(lane.acc[i]); // a chain holds no others
    }
    kernels::run_portable_steps(a.data(), b.data(), sum.data());
    for (std::size_t i = 0; i < lanes; ++i)
      ASSERT_EQ(bits_of(bf16_step(a[i], b[i], lane.acc[i])), bits_of(sum[i])) << describe(lane, i);
  }
}

TEST(gemm_bf16, products_of_awkward_numbers_are_the_model_on_every_instruction_set) {
  const std::size_t rows = 17, n = 64, k = 7;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    lane_source source{word_source{seed}};
    weight_case w{kernels::dtype::bf16, kernels::arithmetic::bf16, n, k, seed};
    const std::uint32_t low = seed % 3 == 0 ? 0 : 40, high = seed % 3 == 0 ? 255 : 90;
    for (std::size_t i = 0; i < n * k; ++i)
      w.put_bits(i, source.with_exponent(low, high) >> 16);
    w.pack();
    std::vector<float> x(rows * k);
    for (float& value : x)
      value = std::bit_cast<float>(source.with_exponent(low, high));
    for (const auto set : kernels::instruction_sets()) {
      ASSERT_TRUE(kernels::use_instruction_set(set));
      const auto y = multiply(w, kernels::arithmetic::bf16, x, rows);
      for (std::size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(bits_of(chain(w, kernels::arithmetic::bf16, &x[i / n * k], i % n)), bits_of(y[i]))
          << set << " seed " << seed << " at " << i;
    }
  }
  ASSERT_TRUE(kernels::use_instruction_set(""));
}

} // namespace
} // namespace rollcast::test
#endif // HWY_ONCE
