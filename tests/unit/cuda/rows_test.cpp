// Goal: embedding, norm, rotation, silu and the KV that is appended have the CPU's bits, rounded
// once to bf16.
// Method: the same inputs to the kernels of both; NaN beside every row; padded rows.
#include "kernels/cuda/rows.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/rope.hpp"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <cmath>

namespace rollcast::test {
namespace {

TEST(cuda_rows, embed_widens_exactly) {
  const std::size_t dim = 300;
  const auto table = rounded(pattern(10 * dim, 1));
  const on_device<std::uint16_t> on{table};
  const on_device<std::int32_t> tokens{std::vector<std::int32_t>{7, 0, 7}};
  const on_device<float> out{3 * dim};
  must(cuda::embed({tokens.data(), on.data(), out.data(), 3, dim}, nullptr));
  const auto got = out.values();
  for (std::size_t d = 0; d < dim; ++d) {
    ASSERT_EQ(got[d], kernels::widen_bf16(table[7 * dim + d]));
    ASSERT_EQ(got[dim + d], kernels::widen_bf16(table[d]));
  }
}

TEST(cuda_rows, rms_norm_has_the_cpus_bits) {
  for (const std::size_t dim : {1, 31, 64, 100, 1024, 2600}) {
    const std::size_t rows = 4, stride = dim + 3;
    std::vector<float> x(rows * stride, poison);
    const auto values = pattern(rows * dim, dim, 3.0f);
    for (std::size_t i = 0; i < rows * dim; ++i)
      x[i / dim * stride + i % dim] = values[i];
    const auto w = pattern(dim, 2);
    std::vector<float> want(rows * dim);
    kernels::rms_norm_cpu({x.data(), w.data(), want.data(), dim, stride, dim, 1e-6f}, 0, rows);
    const on_device<float> on_x{x}, on_w{w};
    const on_device<std::uint16_t> y{2 * dim};
    const on_device<std::uint32_t> rows_of{std::vector<std::uint32_t>{3, 1}};
    must(cuda::rms_norm(
      {on_x.data(), stride, rows_of.data(), on_w.data(), y.data(), dim, 2, dim, 1e-6f}, nullptr));
    const auto got = y.values();
    for (std::size_t i = 0; i < 2 * dim; ++i) {
      const std::size_t row = i < dim ? 3 : 1;
      ASSERT_EQ(got[i], kernels::round_bf16(want[row * dim + i % dim])) << dim << " " << i;
    }
  }
}

TEST(cuda_rows, rms_norm_sums_in_the_house_order) {
  // Every product lies at a tie of bf16, so that the last bit of the sum decides how it is rounded.
  const std::size_t rows = 3, dim = 1500;
  const auto x = pattern(rows * dim, 31, 3.0f);
  for (std::size_t r = 0; r < rows; ++r) {
    const float* const row = x.data() + r * dim;
    std::vector<float> w(dim, 1.0f), scaled(dim), want(dim);
    kernels::rms_norm_cpu({row, w.data(), scaled.data(), dim, dim, dim, 1e-6f}, 0, 1);
    for (std::size_t d = 0; d < dim; ++d)
      w[d] = scaled[d] != 0.0f ? 1.00390625f / scaled[d] : 1.0f;
    kernels::rms_norm_cpu({row, w.data(), want.data(), dim, dim, dim, 1e-6f}, 0, 1);
    const on_device<float> on_x{std::vector<float>(row, row + dim)}, on_w{w};
    const on_device<std::uint16_t> y{dim};
    cuda::rms_norm_args args;
    args.x = on_x.data();
    args.x_stride = args.y_stride = args.dim = dim;
    args.w = on_w.data();
    args.y = y.data();
    args.rows = 1;
    args.eps = 1e-6f;
    must(cuda::rms_norm(args, nullptr));
    EXPECT_TRUE(same_bits(y.values(), rounded(want))) << r;
  }
}

TEST(cuda_rows, silu_has_the_cpus_bits) {
  const std::size_t rows = 3, dim = 270;
  const auto gate_up = pattern(rows * 2 * dim, 4, 20.0f);
  std::vector<float> want(rows * dim);
  kernels::silu_mul_cpu({gate_up.data(), 2 * dim, want.data(), dim, dim}, 0, rows);
  const on_device<float> on{gate_up};
  const on_device<std::uint16_t> out{rows * dim};
  must(cuda::silu_mul({on.data(), 2 * dim, out.data(), dim, rows, dim}, nullptr));
  EXPECT_TRUE(same_bits(out.values(), rounded(want)));
}

TEST(cuda_rows, silu_of_pairs_has_the_cpus_bits_of_what_was_rounded) {
  const std::size_t rows = 3, dim = 270;
  const auto pairs = rounded(pattern(rows * 2 * dim, 4, 20.0f));
  const auto values = widened(pairs);
  std::vector<float> apart(rows * 2 * dim), want(rows * dim);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t d = 0; d < dim; ++d) {
      apart[r * 2 * dim + d] = values[(r * dim + d) * 2];
      apart[r * 2 * dim + dim + d] = values[(r * dim + d) * 2 + 1];
    }
  kernels::silu_mul_cpu({apart.data(), 2 * dim, want.data(), dim, dim}, 0, rows);
  const on_device<std::uint16_t> on{pairs}, out{rows * dim};
  must(cuda::silu_pairs({on.data(), out.data(), rows, dim}, nullptr));
  EXPECT_TRUE(same_bits(out.values(), rounded(want)));
}

struct rope_case {
  std::size_t heads, kv_heads, head_dim;
  bool norms;
};

TEST(cuda_rows, qkv_rope_append_has_the_cpus_bits) {
  for (const auto& shape :
       {rope_case{6, 2, 64, true}, rope_case{3, 1, 128, true}, rope_case{4, 4, 128, false}}) {
    const std::size_t dim = shape.head_dim, rows = 4, positions = 40;
    const std::size_t width = (shape.heads + 2 * shape.kv_heads) * dim, q_width = shape.heads * dim;
    kernels::rope_params rope;
    rope.head_dim = dim;
    std::vector<float> cos_sin(positions * dim);
    kernels::rope_table(rope, positions, cos_sin.data());
    const auto qkv = pattern(rows * width, 8, 2.0f), q_norm = pattern(dim, 9),
               k_norm = pattern(dim, 10);
    std::vector<kernels::row_place> places{{0, 1}, {33, 0}, {17, 1}, {5, 2}};
    kernels::kv_layout kv{nullptr, 32, shape.kv_heads, dim, kernels::dtype::bf16};
    std::vector<std::uint16_t> cache(3 * kv.block_bytes() / 2, 0xffff);
    auto want_cache = cache;
    auto want = qkv;
    kv.data = reinterpret_cast<std::byte*>(want_cache.data());
    kernels::qkv_rope_append_cpu(
      {want.data(), width, shape.heads, shape.kv_heads, shape.norms ? q_norm.data() : nullptr,
       shape.norms ? k_norm.data() : nullptr, 1e-6f, cos_sin.data(), places.data(), kv},
      0, rows - 1);
    places[3].kv_block = cuda::no_block; // The last row is padding.
    const on_device<float> on_qkv{qkv}, on_table{cos_sin}, on_q_norm{q_norm}, on_k_norm{k_norm};
    const on_device<std::uint16_t> q{rows * q_width}, on_cache{cache};
    const on_device<kernels::row_place> on_places{places};
    kv.data = reinterpret_cast<std::byte*>(on_cache.data());
    must(cuda::qkv_rope_append({on_qkv.data(), width, q.data(), q_width, rows, shape.heads,
                                shape.kv_heads, shape.norms ? on_q_norm.data() : nullptr,
                                shape.norms ? on_k_norm.data() : nullptr, 1e-6f, on_table.data(),
                                on_places.data(), kv},
                               nullptr));
    EXPECT_TRUE(same_bits(on_cache.values(), want_cache));
    const auto got = q.values();
    for (std::size_t r = 0; r + 1 < rows; ++r)
      for (std::size_t d = 0; d < q_width; ++d)
        ASSERT_EQ(got[r * q_width + d], kernels::round_bf16(want[r * width + d])) << r << " " << d;
  }
}

} // namespace
} // namespace rollcast::test
