// Goal: the product is right, and a row's bits depend on that row and the weights alone: not on how
// many rows there are, which variant ran, what other rows hold, or in which order blocks come.
// Method: a double-precision oracle with a bound; every number of rows in every variant against the
// rows one by one; NaN in other rows, in what surrounds the operands, and in the workspace.
#include "kernels/cuda/gemm.hpp"
#include "kernels/numerics.hpp"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

namespace rollcast::test {
namespace {

using cuda::gemm_epilogue;
using cuda::gemm_output;
using cuda::gemm_variant;

/// Columns, so that the last tiles are ragged, and K, so that there is a tail and there are leaves.
struct gemm_shape {
  std::size_t n, k;
};
constexpr gemm_shape one_leaf{72, 200}, two_leaves{40, 1032}, four_leaves{24, 2056};

class cuda_gemm : public testing::Test {
protected:
  void TearDown() override { run_in_order(0); }

  /// The first `rows` of a problem; x has a gap behind each row, full of NaN.
  static std::vector<float> multiply(const gemm_shape& shape, std::size_t rows,
                                     gemm_variant variant = gemm_variant::automatic,
                                     std::size_t first = 0, std::optional<std::size_t> bad = {}) {
    const std::size_t stride = shape.k + 8;
    auto x = rounded(pattern((first + rows) * shape.k, 11, 2.0f));
    std::vector<std::uint16_t> spaced(rows * stride, 0xffff);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t i = 0; i < shape.k; ++i)
        spaced[r * stride + i] = bad == r ? 0xffff : x[(first + r) * shape.k + i];
    const on_device<std::uint16_t> xs{spaced}, w{weights(shape)};
    const on_device<float> y{rows * shape.n};
    const on_device<std::byte> workspace{workspace_bytes(shape)};
    must(cuda::fill_async(workspace.data(), 0, workspace.size(), nullptr));
    cuda::gemm_args args;
    args.x = xs.data();
    args.x_stride = stride;
    args.w = w.data();
    args.y = y.data();
    args.y_stride = shape.n;
    args.rows = rows;
    args.n = shape.n;
    args.k = shape.k;
    args.workspace = workspace.data();
    args.variant = variant;
    must(cuda::gemm(args, nullptr));
    const auto once = y.values();
    // Once more, behind a product of NaN: of what that one has left, nothing may be taken.
    const on_device<std::uint16_t> nothing{std::vector<std::uint16_t>(spaced.size(), 0xffff)};
    args.x = nothing.data();
    must(cuda::gemm(args, nullptr));
    must(cuda::fill_async(y.data(), 0xff, y.size() * sizeof(float), nullptr)); // all comes anew
    args.x = xs.data();
    must(cuda::gemm(args, nullptr));
    EXPECT_TRUE(same_bits(once, y.values()) || bad) << "the workspace was left as it was found";
    return once;
  }

  static std::size_t workspace_bytes(const gemm_shape& shape) {
    return std::max<std::size_t>(cuda::gemm_workspace_bytes(300, shape.n, shape.k), 16);
  }
  static std::vector<std::uint16_t> weights(const gemm_shape& shape) {
    return rounded(pattern(shape.n * shape.k, 12));
  }
};

TEST_F(cuda_gemm, is_right) {
  for (const auto& shape : {one_leaf, two_leaves, four_leaves}) {
    const std::size_t rows = 19;
    const auto x = widened(rounded(pattern(rows * shape.k, 11, 2.0f)));
    const auto w = widened(weights(shape));
    const auto y = multiply(shape, rows);
    for (std::size_t m = 0; m < rows; ++m)
      for (std::size_t n = 0; n < shape.n; ++n) {
        double sum = 0, size = 0;
        for (std::size_t k = 0; k < shape.k; ++k) {
          const double term =
            static_cast<double>(x[m * shape.k + k]) * static_cast<double>(w[n * shape.k + k]);
          sum += term;
          size += std::abs(term);
        }
        // A tensor core may cut off 17 addends a step of 16 where the emulator rounds once.
        const double bound = size * 0x1p-21 * static_cast<double>(shape.k / 16 + 8);
        ASSERT_NEAR(y[m * shape.n + n], sum, bound) << m << " " << n;
      }
  }
}

TEST_F(cuda_gemm, cuts_k_by_the_weights_alone) {
  EXPECT_EQ(cuda::gemm_leaves(one_leaf.n, one_leaf.k), 1u);
  EXPECT_EQ(cuda::gemm_leaves(two_leaves.n, two_leaves.k), 2u);
  EXPECT_EQ(cuda::gemm_leaves(four_leaves.n, four_leaves.k), 4u);
  EXPECT_EQ(cuda::gemm_leaves(6144, 4096), 4u) << "q, k and v of Qwen3-8B";
  EXPECT_EQ(cuda::gemm_leaves(24576, 4096), 1u) << "gate and up";
  EXPECT_EQ(cuda::gemm_leaves(4096, 12288), 4u) << "down";
}

TEST_F(cuda_gemm, gives_a_row_the_same_bits_in_every_number_of_rows_and_variant) {
  for (const auto& shape : {one_leaf, two_leaves}) {
    std::vector<float> alone;
    for (std::size_t r = 0; r < 129; ++r) {
      const auto row = multiply(shape, 1, gemm_variant::automatic, r);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    const auto first = [&](std::size_t rows) {
      return std::vector<float>(alone.begin(),
                                alone.begin() + static_cast<std::ptrdiff_t>(rows * shape.n));
    };
    for (const std::size_t rows :
         {2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129})
      EXPECT_TRUE(same_bits(multiply(shape, rows), first(rows))) << rows;
    for (const auto variant :
         {gemm_variant::rows_16, gemm_variant::rows_32, gemm_variant::rows_64, gemm_variant::tiles})
      for (const std::size_t rows : {1, 17, 129})
        EXPECT_TRUE(same_bits(multiply(shape, rows, variant), first(rows)))
          << rows << " rows, variant " << static_cast<int>(variant);
  }
}

TEST_F(cuda_gemm, gives_many_rows_the_bits_of_few) {
  const auto many = multiply(four_leaves, 257), few = multiply(four_leaves, 5);
  EXPECT_EQ(0, std::memcmp(many.data(), few.data(), few.size() * sizeof(float)));
}

TEST_F(cuda_gemm, does_not_care_in_which_order_blocks_run) {
  const auto want = multiply(four_leaves, 33);
  for (const std::uint64_t order : {1u, 2u, 3u}) {
    run_in_order(order);
    EXPECT_TRUE(same_bits(multiply(four_leaves, 33), want)) << order;
    EXPECT_TRUE(same_bits(multiply(four_leaves, 33, gemm_variant::tiles), want)) << order;
  }
}

TEST_F(cuda_gemm, keeps_a_bad_row_to_itself) {
  for (const auto variant : {gemm_variant::rows_16, gemm_variant::rows_64, gemm_variant::tiles}) {
    const auto good = multiply(two_leaves, 20, variant);
    const auto mixed = multiply(two_leaves, 20, variant, 0, 6);
    for (std::size_t r = 0; r < 20; ++r)
      for (std::size_t n = 0; n < two_leaves.n; ++n) {
        const std::size_t at = r * two_leaves.n + n;
        if (r == 6)
          ASSERT_TRUE(std::isnan(mixed[at]));
        else
          ASSERT_EQ(std::bit_cast<std::uint32_t>(good[at]),
                    std::bit_cast<std::uint32_t>(mixed[at]));
      }
  }
}

TEST_F(cuda_gemm, finishes_with_bias_residual_silu_and_one_rounding) {
  const gemm_shape shape = two_leaves;
  for (const std::size_t rows : {3, 70, 260}) {
    const auto plain = multiply(shape, rows);
    const on_device<std::uint16_t> x{rounded(pattern(rows * shape.k, 11, 2.0f))}, w{weights(shape)};
    const auto biases = pattern(shape.n, 13), residuals = pattern(rows * shape.n, 14);
    const on_device<float> bias{biases}, residual{residuals};
    const on_device<std::byte> workspace{workspace_bytes(shape)};
    must(cuda::fill_async(workspace.data(), 0, workspace.size(), nullptr));
    cuda::gemm_args args{x.data(), shape.k, w.data(), nullptr, shape.n, rows, shape.n, shape.k};
    args.bias = bias.data();
    args.residual = residual.data();
    args.residual_stride = shape.n;
    args.workspace = workspace.data();
    args.output = gemm_output::bf16;
    const on_device<std::uint16_t> y{rows * shape.n}, gated{rows * shape.n / 2};
    args.y = y.data();
    must(cuda::gemm(args, nullptr));
    args.y = gated.data();
    args.y_stride = shape.n / 2;
    args.epilogue = gemm_epilogue::silu_pairs;
    must(cuda::gemm(args, nullptr));
    const auto ys = y.values(), gs = gated.values();
    const auto sum = [&](std::size_t m, std::size_t n) {
      return plain[m * shape.n + n] + biases[n] + residuals[m * shape.n + n];
    };
    for (std::size_t m = 0; m < rows; ++m)
      for (std::size_t n = 0; n < shape.n; ++n) {
        ASSERT_EQ(ys[m * shape.n + n], kernels::round_bf16(sum(m, n)));
        if (n % 2 != 0)
          continue;
        const float gate = sum(m, n);
        const float want = gate / (1.0f + kernels::exp_f32(-gate)) * sum(m, n + 1);
        ASSERT_EQ(gs[(m * shape.n + n) / 2], kernels::round_bf16(want));
      }
  }
}

TEST_F(cuda_gemm, refuses_shapes_that_it_cannot_read) {
  const on_device<std::uint16_t> memory{4096};
  cuda::gemm_args args{memory.data(), 16, memory.data(), memory.data(), 8, 1, 8, 12};
  EXPECT_FALSE(cuda::gemm(args, nullptr).has_value()) << "k 12";
  args.k = 16;
  args.x = memory.data() + 1;
  EXPECT_FALSE(cuda::gemm(args, nullptr).has_value()) << "x not aligned";
  args.x = memory.data();
  args.k = 2048;
  args.x_stride = 2048;
  EXPECT_FALSE(cuda::gemm(args, nullptr).has_value()) << "leaves, and no workspace";
}

} // namespace
} // namespace rollcast::test
