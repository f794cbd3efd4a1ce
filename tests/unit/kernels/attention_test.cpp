// Goal: attention is right, and a row's bits depend on its own query and keys alone.
// Method: a double-precision oracle with a bound from the error analysis; whole prefill compared
// bit for bit with decode, with chunks of many sizes, block sizes, shuffled block tables, item
// sizes and instruction sets, and with branches that share blocks up to a fork; every slot that a
// row may not see is NaN.
#include "kernels/dispatch.hpp"
#include "kernels/kv_copy.hpp"
#include "tests/oracle/attention.hpp"
#include "tests/unit/kernels/attention_problem.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace rollcast::test {
namespace {

using kernels::dtype;

class attention : public testing::Test {
protected:
  void TearDown() override { kernels::use_instruction_set(""); }
};

/// Prefills everything in one call.
std::vector<float> whole(const attention_shape& shape, std::size_t length, std::size_t block_tokens,
                         std::uint64_t layout_seed = 1, std::size_t item_rows = 32) {
  attention_problem problem{shape, length, block_tokens, 7, layout_seed};
  problem.append(0, length);
  std::vector<float> out;
  problem.attend(0, length, item_rows, out);
  return out;
}

/// Appends and attends `chunk` rows at a time: what a chunk may not see is not there yet.
std::vector<float> chunked(const attention_shape& shape, std::size_t length,
                           std::size_t block_tokens, std::size_t chunk) {
  attention_problem problem{shape, length, block_tokens, 7, chunk};
  std::vector<float> out;
  for (std::size_t begin = 0; begin < length; begin += chunk) {
    const std::size_t end = std::min(length, begin + chunk);
    problem.append(begin, end);
    problem.attend(begin, end, 32, out);
  }
  return out;
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
}

constexpr attention_shape shapes[] = {
  {6, 2, 64, dtype::f32},  {6, 2, 64, dtype::bf16},  {4, 4, 16, dtype::f32},
  {7, 1, 80, dtype::f32},  {8, 1, 128, dtype::bf16}, {2, 1, 256, dtype::f32},
  {25, 1, 48, dtype::f32},
};

std::string name(const attention_shape& s) {
  return std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + "x"
         + std::to_string(s.head_dim) + (s.type == dtype::f32 ? " f32" : " bf16");
}

TEST_F(attention, agrees_with_the_double_oracle) {
  constexpr std::size_t length = 150;
  for (const auto& shape : shapes) {
    SCOPED_TRACE(name(shape));
    attention_problem p{shape, length, 16, 7};
    const auto out = whole(shape, length, 16);
    const std::size_t group = shape.heads / shape.kv_heads, dim = shape.head_dim;
    const auto widen = [&](float x) {
      return shape.type == dtype::f32 ? x : kernels::widen_bf16(kernels::round_bf16(x));
    };
    for (std::size_t row : {0u, 1u, 15u, 16u, 63u, 64u, 65u, 127u, 128u, 149u})
      for (std::size_t h = 0; h < shape.heads; ++h) {
        std::vector<std::vector<float>> keys, values;
        for (std::size_t j = 0; j <= row; ++j) {
          const std::size_t from = (j * shape.kv_heads + h / group) * dim;
          keys.emplace_back();
          values.emplace_back();
          for (std::size_t d = 0; d < dim; ++d) {
            keys.back().push_back(widen(p.k[from + d]));
            values.back().push_back(widen(p.v[from + d]));
          }
        }
        const float* q = &p.q[(row * shape.heads + h) * dim];
        const auto want = oracle::attention(q, keys, values, static_cast<double>(p.scale()));
        // A score is a chain of dim FMAs over products up to 4, so it is off by at most
        // 4 dim^2 2^-24 / sqrt(dim); each weight by that factor, and each |v| is at most 2.
        const double n = static_cast<double>(dim), eps = 0x1p-24;
        const double bound = 2 * (2 * 4 * n * std::sqrt(n) + 200) * eps;
        for (std::size_t d = 0; d < dim; ++d)
          ASSERT_NEAR(want[d], out[(row * shape.heads + h) * dim + d], bound)
            << "row " << row << " head " << h << " at " << d;
      }
  }
}

TEST_F(attention, gives_a_row_the_same_bits_in_decode_in_chunks_and_in_one_prefill) {
  for (const auto& shape : shapes) {
    SCOPED_TRACE(name(shape));
    const auto want = whole(shape, 200, 16);
    for (const std::size_t chunk : {1u, 7u, 16u, 33u, 64u, 100u})
      expect_same_bits(want, chunked(shape, 200, 16, chunk));
  }
}

TEST_F(attention, does_not_depend_on_block_size_block_order_or_items) {
  for (const auto& shape : shapes) {
    SCOPED_TRACE(name(shape));
    const auto want = whole(shape, 200, 16);
    for (const std::size_t block : {16u, 32u, 48u, 64u, 256u})
      for (const std::size_t items : {1u, 5u, 32u, 200u})
        expect_same_bits(want, whole(shape, 200, block, 11 + block, items));
  }
}

TEST_F(attention, gives_the_same_bits_on_every_instruction_set) {
  for (const auto& shape : shapes) {
    ASSERT_TRUE(kernels::use_instruction_set(""));
    const auto want = whole(shape, 200, 32);
    for (const auto set : kernels::instruction_sets()) {
      SCOPED_TRACE(name(shape) + " on " + std::string{set});
      ASSERT_TRUE(kernels::use_instruction_set(set));
      expect_same_bits(want, whole(shape, 200, 32));
      expect_same_bits(want, chunked(shape, 200, 32, 1));
    }
  }
}

TEST_F(attention, of_a_branch_in_blocks_of_its_own_has_the_bits_of_a_plain_sequence) {
  constexpr std::size_t length = 240, rows = 20; // the blocks behind 140 are the spare ones
  for (const auto& shape : shapes)
    for (const std::size_t block : {16u, 32u, 48u}) {
      const auto want = whole(shape, length, block);
      for (const std::size_t fork : {1u, 15u, 16u, 17u, 40u, 63u, 64u, 95u, 100u}) {
        SCOPED_TRACE(name(shape) + " fork at " + std::to_string(fork));
        attention_problem p{shape, length, block, 7};
        p.append(0, fork); // what another branch has there from `fork` on stays NaN
        const auto first = fork / block, last = (fork + rows - 1) / block;
        const kernels::kv_slots copy{p.table[first], p.table[140 / block + 1], 0,
                                     static_cast<std::uint32_t>(fork % block)};
        for (auto i = first; i <= last; ++i)
          p.table[i] = p.table[140 / block + 1 + i - first];
        p.append(fork, fork + rows);
        if (fork % block > 0)
          for (std::size_t head = 0; head < shape.kv_heads; ++head)
            kernels::copy_kv_cpu(p.kv, &copy, 1, head, head + 1);
        std::vector<float> out;
        p.attend(fork, fork + rows, 32, out);
        const auto width = shape.heads * shape.head_dim;
        EXPECT_EQ(
          0, std::memcmp(&want[fork * width], &out[fork * width], rows * width * sizeof(float)));
      }
    }
}

TEST(copy_kv, moves_exactly_the_slots_it_is_told_and_one_copy_reads_what_another_wrote) {
  for (const auto& shape : shapes)
    for (const auto& [begin, end] : {std::pair{0u, 1u}, {3u, 29u}, {16u, 32u}, {0u, 48u}}) {
      SCOPED_TRACE(name(shape) + " " + std::to_string(begin) + ".." + std::to_string(end));
      attention_problem want{shape, 3 * 48, 48, 7}, got{shape, 3 * 48, 48, 7};
      const auto t = got.table;
      const kernels::kv_slots copies[] = {{t[0], t[1], begin, end}, {t[1], t[2], begin, end}};
      got.append(0, 48);
      kernels::copy_kv_cpu(got.kv, copies, 2, 0, shape.kv_heads);
      // All else stays NaN. Keys and values of positions in three blocks are those of the first.
      const auto width = shape.kv_heads * shape.head_dim;
      for (const std::size_t at : {48u, 96u}) {
        std::copy_n(want.k.begin(), 48 * width, want.k.begin() + static_cast<long>(at * width));
        std::copy_n(want.v.begin(), 48 * width, want.v.begin() + static_cast<long>(at * width));
        want.append(at + begin, at + end);
      }
      want.append(0, 48);
      EXPECT_EQ(0, std::memcmp(want.kv.data, got.kv.data, 3 * got.kv.block_bytes()));
    }
}

TEST_F(attention, keeps_a_bad_key_or_value_from_the_rows_before_it) {
  for (const auto& shape : shapes)
    for (const std::size_t bad : {1u, 17u, 63u, 64u, 70u, 100u}) {
      SCOPED_TRACE(name(shape) + " position " + std::to_string(bad));
      const auto want = whole(shape, 101, 16);
      attention_problem problem{shape, 101, 16, 7};
      const std::size_t width = shape.kv_heads * shape.head_dim;
      std::fill_n(&problem.k[bad * width], width, poison);
      std::fill_n(&problem.v[bad * width], width, INFINITY);
      problem.append(0, 101);
      std::vector<float> out;
      problem.attend(0, 101, 32, out);
      const std::size_t before = bad * shape.heads * shape.head_dim;
      EXPECT_EQ(0, std::memcmp(want.data(), out.data(), before * sizeof(float)));
      EXPECT_TRUE(std::isnan(out[before])) << "the row itself must show it";
    }
}

TEST_F(attention, of_one_key_is_its_value) {
  const attention_shape shape;
  attention_problem problem{shape, 1, 16, 3};
  problem.append(0, 1);
  std::vector<float> out;
  problem.attend(0, 1, 1, out);
  for (std::size_t h = 0; h < shape.heads; ++h)
    for (std::size_t d = 0; d < shape.head_dim; ++d)
      EXPECT_EQ(out[h * shape.head_dim + d], problem.v[h / 3 * shape.head_dim + d]);
}

TEST_F(attention, plan_covers_every_row_and_head_once_longest_first) {
  const kernels::attention_sequence sequences[] = {
    {nullptr, 0, 1, 300}, {nullptr, 1, 70, 0}, {nullptr, 71, 32, 5}, {nullptr, 103, 1, 0}};
  std::vector<kernels::attention_item> items(kernels::attention_items_max(4, 104, 2));
  const std::size_t n = kernels::plan_attention(sequences, 4, 2, items.data());
  ASSERT_LE(n, items.size());
  std::vector<int> seen(2 * 104);
  std::uint64_t before = ~0ull;
  for (std::size_t i = 0; i < n; ++i) {
    const auto& item = items[i];
    std::uint64_t keys = 0;
    for (std::uint32_t r = item.row_begin; r < item.row_begin + item.rows; ++r) {
      ++seen[item.kv_head * 104 + sequences[item.sequence].row_begin + r];
      keys += sequences[item.sequence].position + r + 1;
    }
    EXPECT_LE(keys, before);
    before = keys;
  }
  for (const int times : seen)
    EXPECT_EQ(1, times);
}

} // namespace
} // namespace rollcast::test
