// Runs the device's tests on GPU 0. Exits with 77 and one line where there is none.
#include "engine/backend/cuda_backend.hpp"

#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const auto there = rollcast::find_gpu(0); !there) {
    std::printf("skipped: %s\n", there.error().detail.c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
