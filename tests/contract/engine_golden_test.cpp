// Goal: a whole run gives the committed bits, on every instruction set, optimised or not.
// Method: a mixed rollout per family and profile; a hash over tokens, log-probabilities and kept
// masses is compared with golden/engine.txt. Built twice: with -O2 and, kernels and engine, with
// -O0.

#include "engine/base/hash.hpp"
#include "kernels/dispatch.hpp"
#include "tests/contract/golden.hpp"
#include "tests/support/fixture_models.hpp"
#include "tests/support/rollout_driver.hpp"

#include <gtest/gtest.h>

namespace rollcast::test {

namespace {

content_hash hash_of_run(const std::shared_ptr<const model_weights>& weights,
                         std::string_view profile) {
  cpu_backend_options options;
  options.kv_blocks = 1024;
  options.block_tokens = 16;
  std::vector<engine> engines;
  engines.emplace_back(make_device(weights, profile, options), engine_limits{8, 128, 0});
  const auto vocabulary = static_cast<std::uint32_t>(weights->config().vocabulary);
  const auto done = run_rollout(mixed_rollout(vocabulary, 24, 60, 5), engines, {});
  content_hash all;
  for (const auto& [id, response] : done) {
    all = hash_of(std::span{response.tokens}, all.low);
    all = hash_of(std::span{response.logprobs}, all.low);
    all = hash_of(std::span{response.kept_masses}, all.low);
  }
  return all;
}

TEST(engine_golden, a_whole_run_has_the_committed_bits_on_every_instruction_set) {
  for (const auto& family : fixture_families)
    for (const std::string profile : {"cpu-f32-v1", "cpu-bf16-v1"}) {
      const auto weights = load_weights(fixture_model(family), profile);
      for (const auto set : kernels::instruction_sets()) {
        ASSERT_TRUE(kernels::use_instruction_set(set));
        SCOPED_TRACE(set);
        const auto hash = hash_of_run(weights, profile);
        expect_golden("engine." + family + "." + profile, std::as_bytes(std::span{&hash, 1}));
      }
    }
  ASSERT_TRUE(kernels::use_instruction_set(""));
}

} // namespace

} // namespace rollcast::test
