// Goal: what `rollcast plan` says of memory is what a worker will take.
// Method: figures worked out by hand for a published model and for a tiny one; the bytes of weights
// against those of every family's fixture, loaded.

#include "cli/sizing.hpp"
#include "engine/model/checkpoint.hpp"
#include "engine/model/weights.hpp"

#include <gtest/gtest.h>

#include <string>

namespace rollcast::cli {
namespace {

/// Qwen/Qwen3-8B by its config.json.
model_config qwen3_8b() {
  model_config c;
  c.hidden = 4096;
  c.layers = 36;
  c.heads = 32;
  c.kv_heads = 8;
  c.head_dim = 128;
  c.intermediate = 12288;
  c.vocabulary = 151936;
  c.max_positions = 40960;
  c.qk_norm = true;
  return c;
}

weight_footprint footprint(const model_config& config, kernels::arithmetic how) {
  const auto bf16 = [](const std::string&) -> result<kernels::dtype> {
    return kernels::dtype::bf16;
  };
  const auto found = weight_footprint_of(config, how, bf16);
  EXPECT_TRUE(found);
  return *found;
}

sizing_question question() {
  sizing_question q;
  q.memory_bytes = find_device("h200")->memory_bytes;
  q.context = 32768;
  return q;
}

result<sizing> answer(const sizing_question& q, const char* profile = "cpu-bf16-v1") {
  const auto how = *find_profile(profile);
  return size_up(q, qwen3_8b(), how, footprint(qwen3_8b(), how.arithmetic));
}

TEST(footprint, of_qwen3_8b_is_what_its_shape_says) {
  // Embedding and head 2 * 151936 * 4096; a layer 2 * 4096 * 4096 (q, o) + 2 * 4096 * 1024 (k, v)
  // + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128; one norm more.
  const auto found = footprint(qwen3_8b(), kernels::arithmetic::bf16);
  EXPECT_EQ(found.parameters, 8'190'735'360u);
  EXPECT_EQ(found.checkpoint, 2 * 8'190'735'360u);
  EXPECT_EQ(found.packed, 2 * (8'190'735'360u - 36 * (2 * 4096 + 2 * 128) - 4096));
  EXPECT_EQ(footprint(qwen3_8b(), kernels::arithmetic::f32).packed, found.packed)
    << "bf16 matrices stay bf16 in the f32 arithmetic";
}

class family : public testing::TestWithParam<const char*> {};

TEST_P(family, footprint_is_what_loading_takes) {
  const std::string path = std::string{ROLLCAST_SOURCE_DIR "/"} + GetParam();
  const auto config = load_config(path);
  ASSERT_TRUE(config) << config.error().detail;
  const auto source = checkpoint::open(path);
  ASSERT_TRUE(source) << source.error().detail;
  for (const auto how : {kernels::arithmetic::f32, kernels::arithmetic::bf16}) {
    const auto told =
      weight_footprint_of(*config, how, [&](const std::string& name) -> result<kernels::dtype> {
        const auto tensor = source->tensor(name);
        return tensor ? result<kernels::dtype>{tensor->type} : fail(tensor);
      });
    const auto loaded = model_weights::load(*config, *source, how);
    ASSERT_TRUE(told) << told.error().detail;
    ASSERT_TRUE(loaded) << loaded.error().detail;
    EXPECT_EQ(told->packed, (*loaded)->arena_bytes());
    std::uint64_t bytes = 0;
    for (const auto& tensor : (*loaded)->tensors())
      bytes += bytes_of(tensor);
    EXPECT_EQ(told->checkpoint, bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(
  fixtures, family,
  testing::Values("tests/fixtures/models/qwen3", "tests/fixtures/models/qwen2",
                  "tests/fixtures/models/llama", "tests/fixtures/models/mimo",
                  "tests/fixtures/models/qwen3_moe", "tests/fixtures/models/glm4_moe",
                  "tests/fixtures/models/deepseek_v3", "tests/fixtures/models/moonlight",
                  "examples/collatz/model"));

TEST(sizing, of_qwen3_8b_on_an_h200_is_what_a_pocket_calculator_says) {
  auto q = question();
  q.prompt_tokens = 1024;
  q.response_tokens = 7168;
  q.group_size = 8;
  q.prompts = 256;
  q.workers = 16;
  q.tokens_per_s = 2000;
  const auto s = answer(q);
  ASSERT_TRUE(s) << s.error().detail;
  EXPECT_EQ(s->usable_bytes, 126'900'000'000u);    // 90 % of 141 GB
  EXPECT_EQ(s->kv_bytes_per_token, 147'456u);      // 2 * 36 * 8 * 128 * 2 bytes
  EXPECT_EQ(s->kv_block_bytes, 4'718'592u);        // 32 of them
  EXPECT_EQ(s->weight_bytes, 2 * 16'380'854'272u); // two epochs
  EXPECT_EQ(s->kv_blocks, 19'950u);                // 94,138,291,456 / 4,718,592
  EXPECT_EQ(s->response_kv_bytes, 4'831'838'208u); // 1024 blocks
  EXPECT_EQ(s->fit_full, 19u);                     // 19,950 / 1024
  EXPECT_EQ(s->fit_expected, 77u);                 // 19,950 / 256
  EXPECT_EQ(s->at_once_full, 19u);
  EXPECT_EQ(s->at_once_expected, 64u); // no more in a step
  EXPECT_EQ(s->responses, 2048u);
  EXPECT_EQ(s->workers_full, 108u);                  // 2048 / 19, up
  EXPECT_EQ(s->workers_expected, 32u);               // 2048 / 64
  EXPECT_EQ(s->batch_tokens, 14'680'064u);           // 2048 * 7168
  EXPECT_DOUBLE_EQ(s->batch_s.value_or(0), 458.752); // over 16 * 2000
  EXPECT_EQ(s->result_bytes_max, 780'140'544u);      // 2048 * 31,744 * 12
  EXPECT_EQ(s->kv_blocks_used_max, 65'536u);         // 64 * 1024
}

TEST(sizing, f32_kv_takes_twice_the_room) {
  const auto s = answer(question(), "cpu-f32-v1");
  ASSERT_TRUE(s);
  EXPECT_EQ(s->kv_bytes_per_token, 294'912u);
  EXPECT_EQ(s->kv_blocks, 9'975u);
}

TEST(sizing, weights_that_never_change_are_held_once) {
  auto q = question();
  q.weight_copies = 1;
  EXPECT_EQ(answer(q)->kv_blocks, 23'422u); // (126,900,000,000 - 16,380,854,272) / 4,718,592
}

TEST(sizing, tells_nothing_that_was_not_said) {
  const auto s = answer(question());
  EXPECT_FALSE(s->fit_expected);
  EXPECT_FALSE(s->workers_expected);
  EXPECT_FALSE(s->batch_s);
  EXPECT_EQ(s->responses, 0u);
}

TEST(sizing, tells_how_many_groups_a_worker_runs_without_a_number_of_prompts) {
  auto q = question();
  q.group_size = 8;
  EXPECT_EQ(answer(q)->groups_at_once, 2u); // 19 responses of the full context
  EXPECT_EQ(answer(q)->workers_for_group, 1u);
  q.group_size = 20;
  EXPECT_EQ(answer(q)->groups_at_once, 0u);
  EXPECT_EQ(answer(q)->workers_for_group, 2u);
  q.prompt_tokens = 1024;
  q.response_tokens = 7168; // 64 at once
  EXPECT_EQ(answer(q)->groups_at_once, 3u);
  EXPECT_EQ(answer(q)->workers_for_group, 1u);
}

void expect_refused(const sizing_question& q, const std::string& what) {
  const auto s = answer(q);
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().code, errc::bad_config);
  EXPECT_NE(s.error().detail.find(what), std::string::npos) << s.error().detail;
  EXPECT_EQ(s.error().detail.find('\n'), std::string::npos);
}

TEST(sizing, refuses_in_one_line_what_cannot_be) {
  auto q = question();
  q.context = 40961;
  expect_refused(q, "context is 40961: it must be 1 to 40960");
  q = question();
  q.prompt_tokens = 32768;
  q.response_tokens = 1;
  expect_refused(q, "32769 together");
  q = question();
  q.block_tokens = 24;
  expect_refused(q, "multiple of 16");
  q = question();
  q.memory_percent = 101;
  expect_refused(q, "memory-percent is 101");
  q = question();
  q.tokens_per_s = 5;
  expect_refused(q, "response-tokens");
  q.response_tokens = 100;
  q.workers = 0;
  expect_refused(q, "workers");
  q = question();
  q.memory_bytes = std::uint64_t{24} << 30;
  expect_refused(q, "weights take 30.5 GiB and one response 4.5 GiB of KV, but 21.5 GiB");
}

TEST(sizing, knows_devices_by_name) {
  for (const auto& device : known_devices())
    EXPECT_FALSE(device.source.empty());
  EXPECT_EQ(find_device("h100")->memory_bytes, 80'000'000'000u);
  EXPECT_NE(find_device("abacus").error().detail.find("known are h200, h100"), std::string::npos);
}

} // namespace
} // namespace rollcast::cli
