// Goal: a row's logits have the same bits in a pass of any number of rows, as a part of a prompt,
// and as a decode step beside others.
// Method: one long prompt computed at once; then so many of its rows, as the beginning of a prompt
// and as decode steps of one token each over the same KV. On a GPU every number of rows in {1..64,
// 127..129, 1024, 4096} of a model that is wide enough for all variants of the product; in the
// emulator a few of a small one.

#include "engine/base/prng.hpp"
#include "kernels/cuda/runtime.hpp"
#include "tests/unit/backend_cuda/devices.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace rollcast::test {
namespace {

/// What this device can be asked in seconds.
struct extent {
  model_config config;
  std::vector<std::uint32_t> numbers; ///< Of rows, ascending.

  static extent here() {
    extent out{small_config(architecture::qwen3), {1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 65}};
    const auto info = kernels::cuda::describe_device(0);
    if (!info || info->emulated)
      return out;
    out.config.hidden = 1024;
    out.config.heads = 16;
    out.config.kv_heads = 4;
    out.config.head_dim = out.config.rope.head_dim = 128;
    out.config.intermediate = 3072;
    out.config.vocabulary = 1000;
    out.config.max_positions = 4200;
    out.numbers.resize(64);
    std::iota(out.numbers.begin(), out.numbers.end(), 1u);
    out.numbers.insert(out.numbers.end(), {127, 128, 129, 1024, 4096});
    return out;
  }
};

class cuda_pass_rows : public ::testing::Test {
protected:
  void SetUp() override {
    what = extent::here();
    most = what.numbers.back();
    cuda_backend_options options;
    options.kv_blocks = 2 * (most / 32 + 1);
    options.rows_max = options.logit_rows_max = most;
    device = small_model{what.config, 1}.cuda(options);
    prng random{9};
    for (std::uint32_t i = 0; i < most; ++i)
      tokens.push_back(static_cast<token_id>(random.below(99)));
    for (std::uint32_t i = 0; i <= most / 32; ++i)
      blocks.push_back((i * 7 + 3) % (most / 32 + 1)); // in no order
    rows.resize(most);
    std::iota(rows.begin(), rows.end(), 0u);
    for (std::uint32_t i = 0; i < most; ++i)
      places.push_back({i, blocks[i / 32]});
    for (std::uint32_t i = 0; i < most; ++i)
      steps.push_back({blocks.data(), i, 1, i});
  }

  std::vector<float> pass(std::uint32_t count,
                          std::span<const kernels::attention_sequence> sequences) {
    device->forward({std::span{tokens}.first(count), std::span{places}.first(count), sequences,
                     std::span{rows}.first(count)});
    const auto logits = device->logits();
    return {logits.begin(), logits.end()};
  }
  std::vector<float> prompt(std::uint32_t count) {
    const kernels::attention_sequence all{blocks.data(), 0, count, 0};
    return pass(count, {&all, 1});
  }

  extent what;
  std::uint32_t most = 0;
  std::unique_ptr<backend> device;
  std::vector<token_id> tokens;
  std::vector<std::uint32_t> blocks;
  std::vector<std::uint32_t> rows;
  std::vector<kernels::row_place> places;
  std::vector<kernels::attention_sequence> steps; ///< Each row as a decode step.
};

TEST_F(cuda_pass_rows, have_the_bits_of_the_whole_prompt) {
  const auto whole = prompt(most);
  const auto same = [&](const std::vector<float>& some) {
    return std::memcmp(some.data(), whole.data(), some.size() * sizeof(float)) == 0;
  };
  EXPECT_NE(0, std::memcmp(&whole[0], &whole[what.config.vocabulary], sizeof(float)))
    << "rows that are alike test nothing";
  for (const auto count : what.numbers) {
    EXPECT_TRUE(same(prompt(count))) << count << " rows of a prompt";
    EXPECT_TRUE(same(pass(count, std::span{steps}.first(count)))) << count << " decode steps";
  }
}

} // namespace
} // namespace rollcast::test
