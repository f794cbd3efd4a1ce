#pragma once

#include "engine/base/prng.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace rollcast::test {

/// Floats in (-scale, scale) made from integers only, so that they are the same everywhere.
inline std::vector<float> pattern(std::size_t n, std::uint64_t seed, float scale = 1.0f) {
  prng random{seed};
  std::vector<float> x(n);
  for (float& v : x) {
    const auto bits = static_cast<std::int32_t>(random.next() >> 40) - (1 << 23);
    v = static_cast<float>(bits) * 0x1p-23f * scale;
  }
  return x;
}

inline constexpr float poison = std::numeric_limits<float>::quiet_NaN();

} // namespace rollcast::test
