// Goal: the tests of the kernels and of the device, over wrong ones.
// Method: the mutant that ROLLCAST_MUTANT names is set, none without it; mutants.py says which
// tests must fail then.

#include <gtest/gtest.h>

#include <cstdlib>

namespace rollcast::test {

extern int mutant;
int mutant = 0; ///< 0: what is linked does what the source says.

} // namespace rollcast::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const char* const number = std::getenv("ROLLCAST_MUTANT"))
    rollcast::test::mutant = std::atoi(number);
  return RUN_ALL_TESTS();
}
