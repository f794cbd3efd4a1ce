#pragma once

#include <cstdint>

namespace rollcast {

/// SplitMix64. Ours because `std::uniform_int_distribution` and `std::shuffle`
/// may differ between standard libraries, and a seed must mean one run anywhere.
/// Source: Steele, Lea and Flood, Fast Splittable PRNGs, OOPSLA 2014.
class prng {
public:
  explicit constexpr prng(std::uint64_t seed) noexcept : state_(seed) {}

  constexpr std::uint64_t next() noexcept {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /// Returns a number in [0, bound). @pre bound > 0
  constexpr std::uint64_t below(std::uint64_t bound) noexcept { return next() % bound; }

  /// Returns true `percent` times out of a hundred.
  constexpr bool chance(std::uint32_t percent) noexcept { return below(100) < percent; }

private:
  std::uint64_t state_;
};

} // namespace rollcast
