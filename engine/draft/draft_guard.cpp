#include "engine/draft/draft_guard.hpp"

#include <algorithm>
#include <bit>

namespace rollcast {

namespace {

/// What one step without drafts is worth in the mean of its band.
constexpr double refresh = 1.0 / 16;
/// A step that took so much longer than those before was held up by others: no more of it counts.
constexpr double held_up = 4;
/// A step with drafts counts as no worse than this, for the same reason.
constexpr double lost_max = 2;
/// A trial that brings less is none that pays: time is not measured any better.
constexpr double gain_min = 1.02;
/// A trial that brings less than this has failed before its end.
constexpr double gain_lost = 0.95;
/// What trials may lose, of all time.
constexpr double lost_share = 0.0025;
/// How much longer than the one before drafting may be shut out.
constexpr std::uint32_t growth = 8;

} // namespace

draft_guard::band& draft_guard::band_of(std::uint32_t rows) {
  return bands_[std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(rows)), bands - 1)];
}

bool draft_guard::admits(std::uint32_t rows) {
  auto& b = band_of(rows);
  if (b.hold_left == 0)
    return true;
  --b.hold_left;
  return false;
}

void draft_guard::plain(std::uint32_t rows, double seconds, double plain_seconds) {
  if (plain_seconds <= 0 || seconds <= 0)
    return;
  auto& b = band_of(rows);
  b.slowness += refresh * (std::min(seconds / plain_seconds, held_up * b.slowness) - b.slowness);
}

void draft_guard::drafted(std::uint32_t rows, double seconds, double plain_seconds,
                          std::size_t tokens, std::size_t seats) {
  auto& b = band_of(rows);
  const auto per_token =
    plain_seconds * b.slowness / static_cast<double>(std::max<std::size_t>(seats, 1));
  const auto worth = per_token * static_cast<double>(tokens);
  if (worth <= 0 || seconds <= 0)
    return;
  b.worth_s += worth;
  b.spent_s += std::min(seconds, lost_max * worth);
  const bool lost = ++b.steps >= trial_steps_min && b.worth_s < gain_lost * b.spent_s;
  if (b.steps < trial_steps && !lost)
    return;
  const bool pays = b.worth_s >= gain_min * b.spent_s;
  const auto lost_steps = (b.spent_s - b.worth_s) / (plain_seconds * b.slowness);
  // The first trials may be wrong: what steps without drafts take is not known yet.
  const auto most = std::clamp(growth * b.hold, hold_min, hold_max);
  b.hold =
    pays ? 0
         : static_cast<std::uint32_t>(std::clamp<double>(lost_steps / lost_share, hold_min, most));
  b.hold_left = b.hold;
  b.worth_s = b.spent_s = 0;
  b.steps = 0;
}

} // namespace rollcast
