// Runs the kernels' tests on GPU 0. Exits with 77 and one line where there is none.
#include "kernels/cuda/runtime.hpp"

#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const auto count = rollcast::kernels::cuda::device_count();
  if (!count) {
    std::printf("no GPU can be asked: %s\n", count.error().what.c_str());
    return 1;
  }
  if (*count == 0) {
    std::printf("skipped: %s\n", rollcast::kernels::cuda::why_no_device().c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
