// Goal: attention is right, and a row's bits depend on its own query and keys alone.
// Method: a double-precision oracle with a bound; whole prefill compared bit for bit with decode,
// with chunks, with splits side by side or walked, with block sizes and shuffled block tables, and
// with other sequences beside it; every slot that an item may not see is NaN.
#include "kernels/cuda/attention.hpp"
#include "tests/oracle/attention.hpp"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/attention_problem.hpp"

#include <algorithm>
#include <cmath>

namespace rollcast::test {
namespace {

constexpr std::size_t plenty = 100'000; // partial rows

/// A run of rows of one sequence, as a step brings them.
struct chunk {
  std::size_t begin, end;
};

/// Attention of chunks of one sequence, each given as a sequence of its own of one call, as
/// branches of a draft are.
std::vector<std::uint16_t> attend(const attention_problem& problem,
                                  const std::vector<chunk>& chunks, std::size_t partial_rows_max) {
  const auto& shape = problem.shape;
  const std::size_t width = shape.heads * shape.head_dim;
  const on_device<std::uint32_t> table{problem.table};
  std::vector<kernels::attention_sequence> sequences;
  for (const auto& c : chunks)
    sequences.push_back({table.data(), static_cast<std::uint32_t>(c.begin),
                         static_cast<std::uint32_t>(c.end - c.begin),
                         static_cast<std::uint32_t>(c.begin)});
  std::vector<cuda::attention_item> items;
  const auto size =
    cuda::plan_attention(sequences, shape.heads / shape.kv_heads, partial_rows_max, items);
  const auto bound = cuda::attention_plan_bound(chunks.size(), problem.length, problem.length,
                                                shape.heads / shape.kv_heads, partial_rows_max);
  EXPECT_LE(size.items, bound.items);
  EXPECT_LE(size.partial_rows, bound.partial_rows);
  EXPECT_LE(size.groups, bound.groups);
  items.push_back({}); // A neutral one.
  const on_device<std::uint16_t> q{rounded(problem.q)}, out{problem.length * width};
  const on_device<std::byte> cache{std::vector<std::byte>(
    problem.kv.data, problem.kv.data + problem.table.size() * problem.kv.block_bytes())};
  auto kv = problem.kv;
  kv.data = cache.data();
  const on_device<kernels::attention_sequence> on{sequences};
  const on_device<cuda::attention_item> items_on{items};
  const on_device<std::uint32_t> count{
    std::vector<std::uint32_t>{static_cast<std::uint32_t>(items.size())}};
  const on_device<std::byte> partials{
    cuda::attention_partial_bytes(size.partial_rows, shape.heads, shape.head_dim)};
  const on_device<std::uint32_t> counters{
    std::vector<std::uint32_t>(size.groups * shape.kv_heads + 1, 0u)};
  const cuda::attention_args args{q.data(),
                                  width,
                                  out.data(),
                                  width,
                                  shape.heads,
                                  problem.scale(),
                                  kv,
                                  on.data(),
                                  items_on.data(),
                                  count.data(),
                                  items.size() + 3,
                                  reinterpret_cast<float*>(partials.data()),
                                  counters.data()};
  must(cuda::attend(args, nullptr));
  for (const auto counter : counters.values())
    EXPECT_EQ(counter, 0u) << "counters are left as they were found";
  return out.values();
}

/// Prefill in one call.
std::vector<std::uint16_t> whole(const attention_shape& shape, std::size_t length,
                                 std::size_t block_tokens = 16, std::uint64_t layout = 1) {
  attention_problem problem{shape, length, block_tokens, 7, layout};
  problem.append(0, length);
  return attend(problem, {{0, length}}, 0);
}

void expect_rows(const std::vector<std::uint16_t>& got, const std::vector<std::uint16_t>& want,
                 const chunk& rows, std::size_t width) {
  for (std::size_t i = rows.begin * width; i < rows.end * width; ++i)
    ASSERT_EQ(got[i], want[i]) << "row " << i / width;
}

constexpr attention_shape small{4, 2, 64, kernels::dtype::bf16};
constexpr attention_shape wide{7, 1, 128, kernels::dtype::bf16};

class cuda_attention : public testing::Test {
protected:
  void TearDown() override { run_in_order(0); }
};

TEST_F(cuda_attention, is_right) {
  for (const auto& shape : {small, wide}) {
    const std::size_t length = shape.head_dim == 64 ? 600 : 70;
    const attention_problem problem{shape, length, 32, 7};
    const auto out = widened(whole(shape, length, 32));
    const auto q = widened(rounded(problem.q)), k = widened(rounded(problem.k)),
               v = widened(rounded(problem.v));
    for (const std::size_t row : {std::size_t{0}, std::size_t{1}, std::size_t{63}, length - 1})
      for (std::size_t head = 0; head < shape.heads; ++head) {
        std::vector<std::vector<float>> keys, values;
        const std::size_t kv_head = head / (shape.heads / shape.kv_heads);
        for (std::size_t p = 0; p <= row; ++p) {
          const auto at =
            static_cast<std::ptrdiff_t>((p * shape.kv_heads + kv_head) * shape.head_dim);
          const auto dim = static_cast<std::ptrdiff_t>(shape.head_dim);
          keys.emplace_back(k.begin() + at, k.begin() + at + dim);
          values.emplace_back(v.begin() + at, v.begin() + at + dim);
        }
        const std::size_t at = (row * shape.heads + head) * shape.head_dim;
        const auto want =
          oracle::attention(q.data() + at, keys, values, static_cast<double>(problem.scale()));
        for (std::size_t d = 0; d < shape.head_dim; ++d)
          ASSERT_NEAR(out[at + d], want[d], 0.02) << row << " " << head << " " << d;
      }
  }
}

TEST_F(cuda_attention, gives_decode_the_bits_of_prefill) {
  for (const auto& shape : {small, wide}) {
    const std::size_t length = shape.head_dim == 64 ? 1100 : 530;
    const std::size_t width = shape.heads * shape.head_dim;
    const auto want = whole(shape, length);
    for (const std::size_t row : {std::size_t{0}, std::size_t{64}, std::size_t{511},
                                  std::size_t{512}, std::size_t{527}, length - 1}) {
      attention_problem problem{shape, length, 64, 7, row};
      problem.append(0, row + 1); // Behind it all is NaN.
      for (const std::size_t partial_rows : {std::size_t{0}, plenty})
        expect_rows(attend(problem, {{row, row + 1}}, partial_rows), want, {row, row + 1}, width);
    }
  }
}

TEST_F(cuda_attention, gives_chunks_the_bits_of_the_whole) {
  const std::size_t length = 590, width = small.heads * small.head_dim;
  const auto want = whole(small, length);
  for (const std::size_t step : {9, 31, 200, 500}) {
    attention_problem problem{small, length, 16, 7, step};
    std::size_t begin = 0;
    // Many short chunks cost time: the first is long.
    for (std::size_t end = step < 100 ? 480 + step : step; begin < length; end += step) {
      const chunk rows{begin, std::min(end, length)};
      problem.append(rows.begin, rows.end);
      expect_rows(attend(problem, {rows}, plenty), want, rows, width);
      begin = rows.end;
    }
  }
}

TEST_F(cuda_attention, does_not_care_about_neighbours_blocks_or_order) {
  const std::size_t length = 560, width = small.heads * small.head_dim;
  const auto want = whole(small, length);
  EXPECT_TRUE(same_bits(whole(small, length, 128, 9), want)) << "block size and table";
  attention_problem problem{small, length, 32, 7, 3};
  problem.append(0, length);
  const std::vector<chunk> chunks{{0, 40}, {100, 101}, {300, 309}, {520, 560}, {519, 520}};
  for (const std::uint64_t order : {0u, 1u, 5u})
    for (const std::size_t partial_rows : {std::size_t{0}, std::size_t{20}, plenty}) {
      run_in_order(order);
      const auto got = attend(problem, chunks, partial_rows);
      for (const auto& rows : chunks)
        expect_rows(got, want, rows, width);
    }
}

TEST_F(cuda_attention, merges_splits_from_the_first) {
  // Three splits of weights 1, whose values add up to 2^20, a small number, and -2^20: what is left
  // of the number tells the order.
  const std::size_t length = 3 * cuda::attention_split, width = small.heads * small.head_dim;
  attention_problem problem{small, length, 64, 7};
  std::fill(problem.q.begin(), problem.q.end(), 0.0f);
  const auto value = [](std::size_t position, std::size_t d) {
    if (position / cuda::attention_split != 1)
      return position < cuda::attention_split ? 2048.0f : -2048.0f;
    return position == 600 ? static_cast<float>(d + 1) / 16 : 0.0f;
  };
  const std::size_t row_size = small.kv_heads * small.head_dim;
  for (std::size_t i = 0; i < problem.v.size(); ++i)
    problem.v[i] = value(i / row_size, i % small.head_dim);
  problem.append(0, length);
  for (const std::size_t partial_rows : {std::size_t{0}, plenty}) {
    const auto got = attend(problem, {{length - 1, length}}, partial_rows);
    for (std::size_t i = 0; i < width; ++i) {
      float sum = 0x1p20f;
      sum += value(600, i % small.head_dim);
      sum -= 0x1p20f;
      ASSERT_EQ(got[(length - 1) * width + i],
                kernels::round_bf16(sum / static_cast<float>(length)))
        << i << ", " << partial_rows;
    }
  }
}

TEST_F(cuda_attention, refuses_what_it_has_no_code_for) {
  const attention_problem problem{{4, 2, 32, kernels::dtype::bf16}, 16, 16, 7};
  cuda::attention_args args;
  args.heads = 4;
  args.kv = problem.kv;
  args.items_max = 1;
  const auto said = cuda::attend(args, nullptr);
  ASSERT_FALSE(said.has_value());
  EXPECT_NE(said.error().what.find("head_dim must be 64 or 128"), std::string::npos);
}

} // namespace
} // namespace rollcast::test
