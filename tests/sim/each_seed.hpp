#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace rollcast {

/// Runs `body` with `seeds` seeds (ROLLCAST_TEST_SEEDS times as many, for a long check), or with
/// the one that ROLLCAST_TEST_SEED names; ends at the first that fails.
template <class Body>
void each_seed(std::uint64_t seeds, Body body) {
  const char* only = std::getenv("ROLLCAST_TEST_SEED");
  const auto first = only ? std::strtoull(only, nullptr, 10) : 1;
  const char* times = std::getenv("ROLLCAST_TEST_SEEDS");
  const auto last = only ? first : seeds * (times ? std::strtoull(times, nullptr, 10) : 1);
  for (auto seed = first; seed <= last && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("replay with ROLLCAST_TEST_SEED=" + std::to_string(seed));
    body(seed);
  }
}

} // namespace rollcast
