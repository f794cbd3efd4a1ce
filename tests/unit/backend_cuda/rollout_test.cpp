// Goal: on a GPU's device, too, a response is a function of its request alone: the same bits for
// every batch, row budget, block size, chunk length and fate of its KV, with graphs and without,
// drafted or not, and with everything poisoned that a pass may not read; scoring gives the bits of
// generation; and the numbers are those of the model, near to the CPU's.
// Method: the whole engine over the emulated device (every kernel run on the host, thread by
// thread) with models as small as the kernels take; one rollout in a plain way and in every other.

#include "engine/backend/forwarding_backend.hpp"
#include "tests/contract/knowing_drafter.hpp"
#include "tests/unit/backend_cuda/devices.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace rollcast::test {
namespace {

class cuda_rollout : public ::testing::TestWithParam<architecture> {
protected:
  struct way {
    std::string name;
    cuda_backend_options device;
    engine_limits limits;
    drive how = {};
    std::size_t engines = 1;
    bool follows_on_host = false; ///< Drafts.
  };

  std::map<std::uint64_t, finished_response> run(const way& w,
                                                 const std::shared_ptr<drafter>& by = {}) const {
    std::vector<engine> engines;
    for (std::size_t i = 0; i < w.engines; ++i) {
      auto device = model.cuda(w.device);
      if (w.follows_on_host)
        device = std::make_unique<forwarding_backend>(std::move(device));
      engines.emplace_back(std::move(device), w.limits);
      engines.back().speculate(by);
    }
    return run_rollout(work, engines, w.how);
  }

  void expect_same(const way& w, const std::map<std::uint64_t, finished_response>& expected,
                   const std::shared_ptr<drafter>& by = {}) const {
    const auto got = run(w, by);
    for (const auto& [id, response] : expected)
      EXPECT_TRUE(same_bits(response, got.at(id))) << w.name << ", response " << id;
  }

  static cuda_backend_options with_graphs(cuda_backend_options options, std::uint32_t rows) {
    options.graph_rows_max = rows;
    return options;
  }

  static cuda_backend_options poisoned(cuda_backend_options options) {
    options.poison = true;
    return options;
  }

  small_model model{GetParam()};
  rollout work = small_rollout();
  way plain{"plain", with_graphs(small_options(), 0), {1, 48, 0}};
};

TEST_P(cuda_rollout, has_the_same_bits_however_it_is_scheduled) {
  const auto expected = run(plain);
  std::size_t tokens = 0;
  for (const auto& [id, response] : expected)
    tokens += response.tokens.size();
  EXPECT_GT(tokens, 12u);
  expect_same({"together, graphs", small_options(), {8, 48, 0}}, expected);
  expect_same({"together, no graphs", with_graphs(small_options(), 0), {8, 48, 0}}, expected);
  expect_same({"rows of 7, blocks of 32, poisoned", poisoned(small_options(40, 32, 7)), {5, 7, 0}},
              expected);
  expect_same({"chunks of 2, KV moved, poisoned",
               poisoned(small_options(32)),
               {8, 48, 0},
               {2, true, between_chunks::move},
               2},
              expected);
  expect_same(
    {"chunks of 3, KV dropped", small_options(), {8, 19, 0}, {3, true, between_chunks::drop}},
    expected);
}

TEST_P(cuda_rollout, has_the_same_bits_with_drafts) {
  const auto expected = run(plain);
  for (const auto how : {knowing_options{30, 4, 0}, knowing_options{30, 8, 40}}) {
    auto by = std::make_shared<knowing_drafter>(expected, how);
    expect_same({"drafts", poisoned(small_options()), {4, 48, 0}}, expected, by);
    expect_same({"drafts, followed on the host", small_options(), {4, 48, 0}, {}, 1, true},
                expected, std::make_shared<knowing_drafter>(expected, how));
    expect_same({"drafts, chunks of 3", small_options(), {4, 48, 0}, {3, true}}, expected,
                std::make_shared<knowing_drafter>(expected, how));
    EXPECT_GT(by->accepted, 0u);
    EXPECT_GT(by->rejected, 0u);
  }
}

TEST_P(cuda_rollout, is_scored_with_its_own_bits) {
  const auto done = run(plain);
  engine scorer{model.cuda(poisoned(small_options(64, 32, 19))), {7, 19, 0}};
  std::vector<float> logprobs;
  for (const auto& [id, response] : done) {
    auto tokens = response.prompt;
    tokens.insert(tokens.end(), response.tokens.begin(), response.tokens.end());
    ASSERT_TRUE(scorer.score(tokens, static_cast<std::uint32_t>(response.prompt.size()),
                             response.temperature, logprobs));
    ASSERT_EQ(logprobs.size(), response.logprobs.size());
    EXPECT_EQ(
      0, std::memcmp(logprobs.data(), response.logprobs.data(), logprobs.size() * sizeof(float)))
      << "response " << id;
  }
}

TEST_P(cuda_rollout, says_what_the_cpu_says_but_for_rounding) {
  std::vector<token_id> tokens;
  prng random{3};
  for (int i = 0; i < 40; ++i)
    tokens.push_back(static_cast<token_id>(random.below(99)));
  std::vector<float> here;
  std::vector<float> there;
  ASSERT_TRUE(engine(model.cuda(small_options()), {8, 48, 0}).score(tokens, 1, 1.0f, here));
  ASSERT_TRUE(engine(model.cpu("cpu-f32-v1"), {8, 48, 0}).score(tokens, 1, 1.0f, there));
  ASSERT_EQ(here.size(), there.size());
  double worst = 0;
  double spread = 0;
  for (std::size_t i = 0; i < here.size(); ++i) {
    worst =
      std::max(worst, std::fabs(static_cast<double>(here[i]) - static_cast<double>(there[i])));
    spread =
      std::max(spread, std::fabs(static_cast<double>(there[i]) - static_cast<double>(there[0])));
  }
  EXPECT_LT(worst, 0.06); // bf16 has 8 bits; the logits are of size 1
  EXPECT_GT(spread, 0.5) << "the comparison tells nothing";
}

INSTANTIATE_TEST_SUITE_P(families, cuda_rollout,
                         ::testing::Values(architecture::qwen3, architecture::qwen2,
                                           architecture::llama),
                         [](const auto& family) { return std::string{to_string(family.param)}; });

} // namespace
} // namespace rollcast::test
