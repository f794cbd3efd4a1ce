#pragma once

#include "tests/support/fixture_models.hpp"
#include "tests/support/rollout_driver.hpp"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace rollcast::test {

/// A way to run the mixed rollout; none may change a bit.
struct setting {
  std::string name;
  cpu_backend_options device;
  engine_limits limits;
  drive how;
  std::size_t engines = 1;
  bool recomputes = false; ///< KV is dropped or has no room; else every token is computed once.
};

inline cpu_backend_options device_of(std::uint32_t threads, std::uint32_t blocks,
                                     std::uint32_t block_tokens, std::uint32_t rows = 256) {
  cpu_backend_options options;
  options.threads = threads;
  options.kv_blocks = blocks;
  options.block_tokens = block_tokens;
  options.rows_max = rows;
  options.logit_rows_max = 64;
  return options;
}

inline const std::vector<setting> settings{
  {"batch of 1", device_of(1, 64, 16), {1, 256, 0}, {}},
  {"batch of 7, two threads", device_of(2, 256, 16), {7, 256, 0}, {}},
  {"batch of 64, rows of 16", device_of(1, 512, 32, 64), {64, 64, 0}, {}},
  {"rows of 19, blocks of 64", device_of(1, 64, 64, 19), {16, 19, 0}, {}},
  {"chunks of 16", device_of(1, 256, 16), {64, 256, 0}, {16}},
  {"chunks of 7, KV dropped",
   device_of(1, 256, 32),
   {8, 33, 0},
   {7, true, between_chunks::drop},
   1,
   true},
  {"chunks of 5, KV moved", device_of(1, 128, 16), {8, 64, 0}, {5, true, between_chunks::move}, 3},
  {"KV moved, small pool",
   device_of(2, 16, 16),
   {8, 64, 0},
   {16, true, between_chunks::move},
   2,
   true},
  {"cut after every other step, KV moved",
   device_of(1, 512, 16),
   {8, 19, 0},
   {0, true, between_chunks::move, 2},
   3},
  {"cut while some are preempted",
   device_of(1, 24, 16),
   {16, 64, 0},
   {0, false, between_chunks::keep, 7},
   1,
   true},
  {"preemption", device_of(1, 24, 16), {16, 64, 0}, {0, false}, 1, true},
};

inline std::map<std::uint64_t, finished_response>
run_setting(const std::shared_ptr<const model_weights>& weights, std::string_view profile,
            const rollout& work, const setting& s,
            const std::shared_ptr<drafter>& speculator = {}) {
  std::vector<engine> engines;
  for (std::size_t i = 0; i < s.engines; ++i) {
    engines.emplace_back(make_device(weights, profile, s.device), s.limits);
    engines.back().speculate(speculator);
  }
  auto done = run_rollout(work, engines, s.how);
  if (s.name == "preemption") {
    EXPECT_GT(engines[0].stats().preemptions, 0u) << "the pool is too large to test anything";
  }
  std::uint64_t recomputed = 0;
  for (const auto& e : engines)
    recomputed += e.stats().recomputed_tokens;
  // KV that is not believed is computed again, with the same bits: only this tells.
  if (s.recomputes)
    EXPECT_GT(recomputed, 0u) << s.name;
  else
    EXPECT_EQ(recomputed, 0u) << s.name;
  return done;
}

/// The mixed rollout on one family in one numerics profile.
class engine_contract : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
protected:
  std::string family() const { return std::get<0>(GetParam()); }
  std::string profile() const { return std::get<1>(GetParam()); }
  std::shared_ptr<const model_weights> weights = load_weights(fixture_model(family()), profile());
  rollout work = mixed_rollout(static_cast<std::uint32_t>(weights->config().vocabulary), 24, 60, 5);
  setting plain{"plain", device_of(1, 1024, 16), {1, 256, 0}, {}};
};

inline auto every_model() {
  return ::testing::Combine(::testing::ValuesIn(fixture_families),
                            ::testing::Values("cpu-f32-v1", "cpu-bf16-v1"));
}

inline std::string
name_of_model(const ::testing::TestParamInfo<std::tuple<std::string, std::string>>& info) {
  std::string name = std::get<0>(info.param) + "_" + std::get<1>(info.param);
  for (char& c : name)
    c = c == '-' ? '_' : c;
  return name;
}

} // namespace rollcast::test
