#include "engine/backend/cuda_backend.hpp"
#include "kernels/cuda/emulator.hpp"

#include <gtest/gtest.h>

#include <cstdio>

/// What only the emulator can do, for tests that ask for it: a GPU runs blocks as it likes.
namespace rollcast::kernels::cuda {

void set_emulated_order(std::uint64_t) noexcept {}

} // namespace rollcast::kernels::cuda

/// Runs the tests on GPU 0; without one, or a driver, says why and is skipped.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!testing::GTEST_FLAG(list_tests))
    if (const auto there = rollcast::find_gpu(0); !there) {
      std::printf("[  SKIPPED ] %s\n", there.error().detail.c_str());
      return 0;
    }
  return RUN_ALL_TESTS();
}
