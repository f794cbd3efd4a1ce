// Goal: a router chooses and weighs a row's experts by its logits alone, in a total order, and what
// the experts made is added up slot after slot.
// Method: a double-precision oracle that sorts; logits with ties; rows in other batches compared
// with memcmp, on every instruction set; NaN in everything that a row may not read.
#include "kernels/dispatch.hpp"
#include "kernels/route.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <vector>

namespace rollcast::test {
namespace {

using namespace kernels;

struct routed {
  std::vector<std::uint32_t> ids;
  std::vector<float> weights;
};

route_args args_of(const std::vector<float>& logits, std::size_t experts, std::size_t top_k,
                   router_score score, bool normalise, routed& out) {
  const std::size_t rows = logits.size() / experts;
  out.ids.assign(rows * top_k, 77777);
  out.weights.assign(rows * top_k, poison);
  return {logits.data(), experts,   experts,        top_k,
          score,         normalise, out.ids.data(), out.weights.data()};
}

routed route(const std::vector<float>& logits, std::size_t experts, std::size_t top_k,
             router_score score, bool normalise) {
  routed out;
  route_cpu(args_of(logits, experts, top_k, score, normalise, out), 0, logits.size() / experts);
  return out;
}

std::vector<double> scores_of(const float* logits, std::size_t experts, router_score score) {
  std::vector<double> out;
  double sum = 0;
  for (std::size_t e = 0; e < experts; ++e) {
    const double x = logits[e];
    out.push_back(score == router_score::softmax ? std::exp(x) : 1 / (1 + std::exp(-x)));
    sum += out.back();
  }
  if (score == router_score::softmax)
    for (double& x : out)
      x /= sum;
  return out;
}

TEST(router, agrees_with_the_double_oracle) {
  for (const auto score : {router_score::softmax, router_score::sigmoid})
    for (const std::size_t experts : {1u, 8u, 11u, 128u, 384u, 1024u})
      for (const bool normalise : {false, true}) {
        const std::size_t top_k = std::min<std::size_t>(8, experts), rows = 5;
        const auto logits = pattern(rows * experts, experts, 4.0f);
        const auto got = route(logits, experts, top_k, score, normalise);
        for (std::size_t r = 0; r < rows; ++r) {
          const auto want = scores_of(&logits[r * experts], experts, score);
          std::vector<std::uint32_t> order(experts);
          std::iota(order.begin(), order.end(), 0u);
          std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
            return want[a] != want[b] ? want[a] > want[b] : a < b;
          });
          double sum = 1;
          if (normalise) {
            sum = 0;
            for (std::size_t s = 0; s < top_k; ++s)
              sum += want[order[s]];
          }
          for (std::size_t s = 0; s < top_k; ++s) {
            EXPECT_EQ(order[s], got.ids[r * top_k + s]) << experts << " row " << r << " slot " << s;
            EXPECT_NEAR(want[order[s]] / sum, got.weights[r * top_k + s],
                        1e-5 * want[order[s]] / sum)
              << experts << " row " << r << " slot " << s;
          }
        }
      }
}

TEST(router, prefers_the_lower_id_among_equal_scores) {
  const std::vector<float> flat(40, 0.5f);
  const auto all = route(flat, 40, 6, router_score::softmax, true);
  EXPECT_EQ((std::vector<std::uint32_t>{0, 1, 2, 3, 4, 5}), all.ids);
  for (const float w : all.weights)
    EXPECT_FLOAT_EQ(1.0f / 6.0f, w);
  // +0 and -0 are one score, and so are logits whose sigmoid is 1.
  const std::vector<float> pairs{-0.0f, 3.0f, 0.0f, 3.0f, -1.0f, 3.0f};
  EXPECT_EQ((std::vector<std::uint32_t>{1, 3, 5, 0, 2}),
            route(pairs, 6, 5, router_score::softmax, false).ids);
  const std::vector<float> high{50.0f, 90.0f, 60.0f, 1.0f};
  EXPECT_EQ((std::vector<std::uint32_t>{0, 1, 2}),
            route(high, 4, 3, router_score::sigmoid, false).ids);
}

TEST(router, corrects_the_choice_but_not_the_weights) {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, -1.0f}, bias{5.0f, 0.0f, -3.0f, 4.0f};
  routed got;
  auto args = args_of(logits, 4, 2, router_score::sigmoid, false, got);
  args.choice_bias = bias.data();
  args.scaling = 2.5f;
  route_cpu(args, 0, 1);
  EXPECT_EQ((std::vector<std::uint32_t>{0, 3}), got.ids);
  EXPECT_EQ(0.5f * 2.5f, got.weights[0]);
  EXPECT_NEAR(2.5 / (1 + std::exp(1.0)), got.weights[1], 1e-6);
  args.normalise = true;
  route_cpu(args, 0, 1);
  EXPECT_NEAR(2.5, got.weights[0] + got.weights[1], 1e-6);
}

TEST(router, looks_at_the_best_groups_only_and_takes_the_first_of_equal_ones) {
  // Groups of three: the second holds the best expert, but the two best of others sum to more.
  const std::vector<float> logits{1.0f, 1.5f, -9.0f, 3.0f, -9.0f, -9.0f,
                                  1.5f, 1.0f, -9.0f, 0.0f, 0.0f,  0.0f};
  routed got;
  auto args = args_of(logits, 12, 3, router_score::sigmoid, true, got);
  args.groups = 4;
  args.groups_kept = 2;
  route_cpu(args, 0, 1);
  EXPECT_EQ((std::vector<std::uint32_t>{1, 6, 0}), got.ids);
  args.groups_kept = 1;
  route_cpu(args, 0, 1);
  EXPECT_EQ((std::vector<std::uint32_t>{1, 0, 2}), got.ids) << "experts of one group alone";
  args.groups_kept = 4;
  route_cpu(args, 0, 1);
  EXPECT_EQ((std::vector<std::uint32_t>{3, 1, 6}), got.ids);
  // A choice below zero is still a choice: experts of other groups never take its place.
  const std::vector<float> bias(12, -7.0f);
  args.choice_bias = bias.data();
  args.groups_kept = 1;
  route_cpu(args, 0, 1);
  EXPECT_EQ((std::vector<std::uint32_t>{1, 0, 2}), got.ids);
}

TEST(router, gives_a_row_the_same_bits_in_any_company) {
  constexpr std::size_t experts = 37, top_k = 5;
  for (const auto score : {router_score::softmax, router_score::sigmoid}) {
    const auto row = pattern(experts, 9, 6.0f);
    const auto want = route(row, experts, top_k, score, true);
    for (const std::size_t rows : {2u, 17u})
      for (std::size_t at = 0; at < rows; ++at) {
        std::vector<float> logits(rows * experts, poison);
        std::copy(row.begin(), row.end(),
                  logits.begin() + static_cast<std::ptrdiff_t>(at * experts));
        routed got;
        const auto args = args_of(logits, experts, top_k, score, true, got);
        route_cpu(args, at, rows);
        EXPECT_EQ(
          0, std::memcmp(&got.ids[at * top_k], want.ids.data(), sizeof(std::uint32_t) * top_k));
        EXPECT_EQ(
          0, std::memcmp(&got.weights[at * top_k], want.weights.data(), sizeof(float) * top_k));
        EXPECT_TRUE(at == 0 || got.ids[0] == 77777) << "row 0 was not asked for";
      }
  }
}

TEST(router, turns_a_nan_into_nan_weights_of_experts_that_exist) {
  for (const auto score : {router_score::softmax, router_score::sigmoid}) {
    auto logits = pattern(20, 3);
    logits[13] = poison;
    const auto got = route(logits, 20, 4, score, false);
    EXPECT_TRUE(std::isnan(got.weights[0]));
    EXPECT_EQ(4u, std::set(got.ids.begin(), got.ids.end()).size());
    for (const auto id : got.ids)
      EXPECT_LT(id, 20u);
  }
}

TEST(combine, adds_the_slots_in_order_on_every_instruction_set) {
  for (const auto set : instruction_sets()) {
    SCOPED_TRACE(set);
    ASSERT_TRUE(use_instruction_set(set));
    for (const std::size_t dim : {1u, 16u, 77u, 256u}) {
      constexpr std::size_t top_k = 3, rows = 4;
      auto outputs = pattern(rows * top_k * dim, 5, 3.0f);
      const auto weights = pattern(rows * top_k, 6), before = pattern(rows * dim, 7);
      std::vector<std::uint32_t> places(rows * top_k);
      for (std::uint32_t i = 0; i < places.size(); ++i)
        places[i] = i * 5 % static_cast<std::uint32_t>(places.size());
      auto y = before;
      combine_cpu({outputs.data(), places.data(), weights.data(), top_k, y.data(), dim}, 1, 3);
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t d = 0; d < dim; ++d) {
          float sum = 0.0f;
          for (std::size_t s = 0; s < top_k; ++s)
            sum = std::fma(weights[r * top_k + s], outputs[places[r * top_k + s] * dim + d], sum);
          const float want = r == 1 || r == 2 ? before[r * dim + d] + sum : before[r * dim + d];
          ASSERT_EQ(0, std::memcmp(&want, &y[r * dim + d], sizeof want))
            << dim << " row " << r << " at " << d;
        }
    }
  }
  ASSERT_TRUE(use_instruction_set(""));
}

} // namespace
} // namespace rollcast::test
