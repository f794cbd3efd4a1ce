#pragma once

#include "kernels/numerics.hpp"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// What Philox needs for one row: the position and the ten round keys, widened so that a vector
/// loop can broadcast them from memory.
struct noise_stream {
  std::uint64_t position;
  std::uint64_t key0[10];
  std::uint64_t key1[10];
};

/// The best token so far, by score z + noise in double; ties go to the lowest id.
struct runner {
  double score;
  std::uint32_t token;

  /// 2^24 times a bound of v / w for any token that can still win (see `race_row`); inf where the
  /// scores are so large that rounding hides the noise. The 2^-50 covers the rounding of scores.
  float bound(float z_max) const noexcept;
};

/// Runs tokens [first, first + count) that have a weight and that the bound lets pass.
/// @returns whether one of them is the new best.
bool race_few(const float* z, const float* w, const std::uint32_t* bits, std::size_t first,
              std::size_t count, float z_max, runner& best) noexcept;

} // namespace rollcast::kernels
