#include "engine/draft/draft_budget.hpp"

#include "engine/base/check.hpp"

#include <algorithm>

namespace rollcast {

namespace {

/// A step's measured time is worth so much of the correction as a whole, and of a point's.
constexpr double refresh = 0.05;
constexpr double point_refresh = 0.005;
/// The prior weighs as much as so many tries.
constexpr float prior_tries = 8;
/// After so many tries the older half is forgotten.
constexpr float tries_max = 512;

} // namespace

step_costs::step_costs(std::vector<step_cost> points, kv_cost kv)
  : points_(std::move(points)),
    corrections_(points_.size(), 1.0), kv_{std::max(0.0, kv.first), std::max(0.0, kv.drafted)} {
  ROLLCAST_CHECK(!points_.empty());
}

std::pair<std::size_t, double> step_costs::place(std::uint32_t rows) const {
  const auto above = std::upper_bound(
    points_.begin(), points_.end(), rows,
    [](std::uint32_t wanted, const step_cost& point) { return wanted < point.rows; });
  if (above == points_.begin())
    return {0, 0.0};
  const auto below = static_cast<std::size_t>(above - points_.begin()) - 1;
  if (above == points_.end())
    return {below, 0.0};
  const double span = above->rows - points_[below].rows;
  return {below, (rows - points_[below].rows) / span};
}

double step_costs::line(std::uint32_t rows, const std::vector<double>* corrections) const {
  const auto [below, part] = place(rows);
  const auto at = [&](std::size_t i) {
    return points_[i].seconds * (corrections == nullptr ? 1.0 : (*corrections)[i]);
  };
  if (part > 0)
    return at(below) + part * (at(below + 1) - at(below));
  // Past the last point a row costs what it cost on the way there.
  return at(below) * std::max(1.0, static_cast<double>(rows) / points_[below].rows);
}

double step_costs::attention(const step_size& step) const {
  return kv_.first * static_cast<double>(step.kv_tokens)
         + kv_.drafted * static_cast<double>(step.draft_kv_tokens);
}

double step_costs::first_seconds(const step_size& step) const {
  return line(step.rows, nullptr) + attention(step);
}

double step_costs::seconds(const step_size& step) const {
  return overall_ * (line(step.rows, &corrections_) + attention(step));
}

void step_costs::observe(const step_size& step, double measured) {
  const auto expected = seconds(step);
  if (measured <= 0 || expected <= 0)
    return;
  // A step that was held up by others says nothing of the device.
  const auto excess = std::clamp(measured / expected, 0.5, 2.0) - 1;
  overall_ *= 1 + refresh * excess;
  const auto [below, part] = place(step.rows);
  corrections_[below] *= 1 + point_refresh * (1 - part) * excess;
  if (part > 0)
    corrections_[below + 1] *= 1 + point_refresh * part * excess;
}

std::size_t acceptance::band(float probability) {
  return std::min(static_cast<std::size_t>(std::max(probability, 0.0f) * bands), bands - 1);
}

float acceptance::chance(std::size_t place, float probability, float prior) const {
  const auto& c = cells_[std::min(place, places - 1)][band(probability)];
  return (c.right + prior_tries * prior) / (c.tried + prior_tries);
}

void acceptance::observe(std::size_t place, float probability, bool right) {
  auto& c = cells_[std::min(place, places - 1)][band(probability)];
  c.tried += 1;
  c.right += right ? 1.0f : 0.0f;
  if (c.tried > tries_max) {
    c.tried /= 2;
    c.right /= 2;
  }
}

std::size_t choose_budget(std::span<const float> survivals, std::uint32_t seats,
                          const step_load& load, const step_costs& costs, double margin) {
  double tokens = seats;
  double best = tokens / costs.seconds({load.rows, load.kv_tokens}) * (1 + margin);
  std::size_t chosen = 0;
  for (std::size_t n = 1; n <= survivals.size(); ++n) {
    tokens += survivals[n - 1];
    const auto rate = tokens
                      / costs.seconds({load.rows + static_cast<std::uint32_t>(n), load.kv_tokens,
                                       n * load.seat_kv_tokens});
    if (rate > best) {
      best = rate;
      chosen = n;
    }
  }
  return chosen;
}

} // namespace rollcast
