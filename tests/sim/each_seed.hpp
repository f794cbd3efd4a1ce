#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace rollcast {

/// Runs `body` with `seeds` seeds from 1 or ROLLCAST_TEST_FIRST on (ROLLCAST_TEST_SEEDS times as
/// many, for a check that goes on until it fails), or with the one that ROLLCAST_TEST_SEED names;
/// ends at the first that fails.
template <class Body>
void each_seed(std::uint64_t seeds, Body body) {
  const char* only = std::getenv("ROLLCAST_TEST_SEED");
  const char* from = only ? only : std::getenv("ROLLCAST_TEST_FIRST");
  const auto first = from ? std::strtoull(from, nullptr, 10) : 1;
  const char* times = std::getenv("ROLLCAST_TEST_SEEDS");
  const auto count = seeds * (times ? std::strtoull(times, nullptr, 10) : 1);
  const auto last = only ? first : first + count - 1;
  for (auto seed = first; seed <= last && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("replay with ROLLCAST_TEST_SEED=" + std::to_string(seed));
    body(seed);
  }
}

} // namespace rollcast
