// Goal: a step waits for the device once, drafts or not: sglang #26171 and #12411 lost a third of
// their speed to a host that waits between drafting, verifying and accepting.
// Method: the engine over the emulated device, which counts waits for streams and events; only
// there can they be counted.

#include "kernels/cuda/emulator.hpp"
#include "tests/contract/knowing_drafter.hpp"
#include "tests/unit/backend_cuda/devices.hpp"

#include <gtest/gtest.h>

namespace rollcast::test {
namespace {

TEST(cuda_waits, sglang_26171_12411_once_in_a_step_with_drafts) {
  const small_model model{architecture::qwen3};
  const rollout work = small_rollout();
  std::vector<engine> plain;
  plain.emplace_back(model.cuda(small_options()), engine_limits{1, 48, 0});
  const auto expected = run_rollout(work, plain, {});
  const auto by = std::make_shared<knowing_drafter>(expected, knowing_options{30, 8, 40});
  engine sut{model.cuda(small_options()), {8, 48, 0}};
  sut.speculate(by);
  for (auto request : work) {
    request.generate_max = request.sampling.max_new_tokens;
    ASSERT_TRUE(sut.admit(request));
  }
  std::size_t waited = 0;
  while (sut.has_work()) {
    const auto before = kernels::cuda::emulated_waits();
    sut.step();
    EXPECT_LE(kernels::cuda::emulated_waits() - before, 1u);
    waited += kernels::cuda::emulated_waits() - before;
  }
  EXPECT_GT(waited, 0u);
  EXPECT_GT(by->accepted, 0u);
}

} // namespace
} // namespace rollcast::test
