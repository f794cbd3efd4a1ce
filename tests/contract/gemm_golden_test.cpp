// Goal: the bits of a product never change: not with the compiler's optimisation, not with the
// instruction set, not with a later version of the code.
// Method: integer-generated matrices, hashes committed in golden/gemm.txt. This file is built
// twice, against the kernels at -O2 and at -O0.
#include "kernels/dispatch.hpp"
#include "kernels/gemm.hpp"
#include "tests/contract/golden.hpp"
#include "tests/unit/kernels/gemm_problem.hpp"

#include <gtest/gtest.h>

#include <string>

namespace rollcast::test {
namespace {

using kernels::arithmetic;
using kernels::dtype;

struct golden_case {
  const char* name;
  arithmetic how;
  dtype source;
};
constexpr golden_case cases[] = {
  {"f32.wf32", arithmetic::f32, dtype::f32},     {"f32.wbf16", arithmetic::f32, dtype::bf16},
  {"f32.wf16", arithmetic::f32, dtype::f16},     {"bf16.wf32", arithmetic::bf16, dtype::f32},
  {"bf16.wbf16", arithmetic::bf16, dtype::bf16}, {"bf16.wf16", arithmetic::bf16, dtype::f16},
};

struct shape {
  std::size_t rows, n, k;
};
constexpr shape shapes[] = {{1, 96, 130}, {7, 96, 130}, {16, 65, 77}, {45, 40, 301}};

TEST(gemm_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  ASSERT_FALSE(kernels::instruction_sets().empty()) << "this machine has no FMA";
  for (const auto set : kernels::instruction_sets()) {
    SCOPED_TRACE(set);
    ASSERT_TRUE(kernels::use_instruction_set(set));
    for (const auto& c : cases)
      for (const auto& s : shapes) {
        const weight_case w{c.source, c.how, s.n, s.k, 1};
        const auto x = numbers(s.rows * s.k, 2), bias = numbers(s.n, 3);
        const auto before = numbers(s.rows * s.n, 4);
        const std::string name = std::string{"gemm."} + c.name + ".m" + std::to_string(s.rows) + "n"
                                 + std::to_string(s.n) + "k" + std::to_string(s.k);
        expect_golden(name, multiply(w, c.how, x, s.rows));
        expect_golden(name + ".bias", multiply(w, c.how, x, s.rows, {bias.data(), &before}));
      }
  }
  ASSERT_TRUE(kernels::use_instruction_set(""));
}

} // namespace
} // namespace rollcast::test
