#include "cluster/sim/acceptance_curve.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <cmath>

namespace rollcast::sim {

namespace {

struct point {
  double siblings;
  double length;
};
constexpr std::array<point, 4> table{{{0, 1.70}, {1, 2.04}, {5, 2.32}, {15, 2.53}}};
constexpr int rounds = 60; // of a bisection

chain_gain gain_of(double chance, std::uint32_t drafted) {
  // Tokens of a step are 1 + the drafted ones kept; P(at least k kept) = b^k.
  chain_gain out;
  double squares = 1;
  for (std::uint32_t k = 1; k <= drafted; ++k) {
    out.survival *= chance;
    out.mean += out.survival;
    squares += (2.0 * k + 1) * out.survival; // (k + 1)^2 - k^2
  }
  out.deviation = std::sqrt(std::max(0.0, squares - out.mean * out.mean));
  return out;
}

} // namespace

double published_acceptance_length(double siblings) {
  for (std::size_t i = 1; i < table.size(); ++i) {
    const auto& [n, length] = table[i];
    const auto& [n_before, length_before] = table[i - 1];
    if (siblings <= n)
      return length_before
             + (length - length_before)
                 * (std::log1p(std::max(0.0, siblings)) - std::log1p(n_before))
                 / (std::log1p(n) - std::log1p(n_before));
  }
  return table.back().length;
}

double chance_of_length(double length, std::uint32_t drafted) {
  ROLLCAST_CHECK(length >= 1 && length <= drafted + 1.0);
  double low = 0, high = 1;
  for (int i = 0; i < rounds; ++i) {
    const double middle = (low + high) / 2;
    (gain_of(middle, drafted).mean < length ? low : high) = middle;
  }
  return (low + high) / 2;
}

acceptance_curve::acceptance_curve() {
  for (std::uint32_t level = 0; level <= levels; ++level) {
    const double siblings = std::pow(1 + table.back().siblings, double{1} * level / levels) - 1;
    const double chance = chance_of_length(published_acceptance_length(siblings), chain_max);
    for (std::uint32_t drafted = 0; drafted <= chain_max; ++drafted)
      gains_[level][drafted] = gain_of(chance, drafted);
  }
}

std::uint32_t acceptance_curve::level(double siblings) {
  const double place = std::log1p(std::max(0.0, siblings)) / std::log1p(table.back().siblings);
  // Whole numbers of siblings may lie a rounding below their own step.
  return std::min(levels, static_cast<std::uint32_t>(place * levels + 1e-9));
}

} // namespace rollcast::sim
