#pragma once

#include "engine/draft/drafter.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace rollcast {

/// Seconds of a forward pass by its rows, measured on this device.
struct step_cost {
  std::uint32_t rows = 0;
  double seconds = 0;
};

/// Seconds of one cached position for a row that attends to it.
struct kv_cost {
  double first = 0;   ///< For the first row of a response, which brings the position in.
  double drafted = 0; ///< For a drafted row, which finds it there.
};

/// What a step's time depends on.
struct step_size {
  std::uint32_t rows = 0;      ///< Drafted ones included.
  std::uint64_t kv_tokens = 0; ///< Cached positions that rows which are not drafted attend to.
  std::uint64_t draft_kv_tokens = 0; ///< Those that drafted rows attend to, each counted anew.
};

/// What a step costs: a line between measured points, and a share of each cached position that a
/// row attends to. Corrected by the steps that really run: above all as a whole, because what slows
/// one step down slows all, and a little by point. A point corrected alone would make the next one
/// look cheap, and drafts with it.
class step_costs {
public:
  /// @param points  Ascending in rows, at least one, measured without cached positions.
  step_costs(std::vector<step_cost> points, kv_cost kv);

  double seconds(const step_size& step) const;
  /// The same by what was measured at first.
  double first_seconds(const step_size& step) const;
  void observe(const step_size& step, double seconds);
  const std::vector<step_cost>& points() const noexcept { return points_; }

private:
  /// The point at or below, and how far it is to the next one, 0 to 1.
  std::pair<std::size_t, double> place(std::uint32_t rows) const;
  /// Without cached positions; `corrections` by point.
  double line(std::uint32_t rows, const std::vector<double>* corrections) const;
  double attention(const step_size& step) const;

  std::vector<step_cost> points_;
  double overall_ = 1;              ///< Measured over expected, a moving mean.
  std::vector<double> corrections_; ///< The same by point, of what `overall_` leaves.
  kv_cost kv_;
};

/// How often drafted tokens turn out right: by place in the draft and by the probability that the
/// drafter gave them, from what was verified lately.
class acceptance {
public:
  static constexpr std::size_t places = 16;

  /// Chance that a token is right if all before it in the draft are. Until enough was seen here it
  /// is `prior`.
  float chance(std::size_t place, float probability, float prior) const;
  void observe(std::size_t place, float probability, bool right);

private:
  static constexpr std::size_t bands = 8;
  struct cell {
    float tried = 0;
    float right = 0;
  };
  static std::size_t band(float probability);
  std::array<std::array<cell, bands>, places> cells_{};
};

/// Returns how many of the drafted tokens are worth a row: the number n, zero included, that makes
/// (seats + the first n survivals) tokens for the seconds of a step with n more rows the most.
/// @param survivals  Chance of each to be kept, highest first.
/// @param load  The step without drafts; `seats` of its rows generate a token.
/// A gain below `margin` is none.
std::size_t choose_budget(std::span<const float> survivals, std::uint32_t seats,
                          const step_load& load, const step_costs& costs, double margin = 0.02);

} // namespace rollcast
