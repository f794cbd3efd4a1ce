#include "engine/draft/draft_guard.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

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
/// What so many times the spread of a trial's steps does not explain is no accident.
constexpr double clear_spreads = 2;
/// What trials may lose, of all time.
constexpr double lost_share = 0.0025;
/// What rehearsals have to promise to end a hold.
constexpr double promise_min = 1.05;
/// A promise that ended a hold is a lucky one: what follows it says less of all promises.
constexpr double doubt_max = 1.5;
/// The part of a hold that no promise ends, 1 / this: trials lose so many times their share at
/// most.
constexpr std::uint32_t sure_part = 4;
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

void draft_guard::trial::add(double worth, double spent) {
  worth_s += worth;
  spent_s += spent;
  squares += (worth - spent) * (worth - spent);
  lost_s += spent - worth;
  ++steps;
}

void draft_guard::trial::halve() {
  worth_s /= 2;
  spent_s /= 2;
  squares /= 2;
  steps /= 2;
  lost_s = 0;
}

/// What was gained, lost if negative, over what chance alone makes of so many steps.
double draft_guard::trial::spreads() const {
  return squares > 0 ? (worth_s - spent_s) / std::sqrt(squares) : 0;
}

void draft_guard::rehearsed(std::uint32_t rows, double seconds, double plain_seconds,
                            std::size_t tokens, std::size_t seats) {
  auto& b = band_of(rows);
  if (b.hold_left == 0 || b.promised > 0 || seconds <= 0 || seats == 0)
    return;
  b.rehearsed.add(plain_seconds * static_cast<double>(tokens) / static_cast<double>(seats),
                  seconds);
  const auto promised = b.rehearsed.gain();
  const bool clear = b.rehearsed.steps >= trial_steps_min && b.rehearsed.spreads() > clear_spreads;
  if (!clear && b.rehearsed.steps < trial_steps)
    return;
  b.rehearsed = {};
  if (!clear || promised < promise_min * b.doubt)
    return;
  b.promised = promised;
  const auto sure_left = b.hold / sure_part - std::min(b.hold / sure_part, b.hold - b.hold_left);
  b.hold_left = std::min(b.hold_left, sure_left);
}

void draft_guard::drafted(std::uint32_t rows, double seconds, double plain_seconds,
                          std::size_t tokens, std::size_t seats) {
  auto& b = band_of(rows);
  const auto plain = plain_seconds * b.slowness;
  const auto worth =
    plain * static_cast<double>(tokens) / static_cast<double>(std::max<std::size_t>(seats, 1));
  if (worth <= 0 || seconds <= 0)
    return;
  b.real.add(worth, std::min(seconds + std::exchange(b.vain_s, 0), lost_max * worth));
  const bool lost = b.real.steps >= trial_steps_min && b.real.spreads() < -clear_spreads;
  if (lost || b.real.steps >= trial_steps)
    judge(b, plain);
}

/// Ends a trial. @param plain_s  Of a step without drafts.
void draft_guard::judge(band& b, double plain_s) {
  b.rehearsed = {};
  if (b.real.gain() >= gain_min) {
    b.hold /= growth;
    b.doubt = 1;
    b.promised = 0;
    b.real.halve();
    return;
  }
  const auto lost_steps = b.real.lost_s / plain_s;
  // The first trials may be wrong: what steps without drafts take is not known yet.
  const auto most = std::clamp(growth * b.hold, hold_min, hold_max);
  b.hold = static_cast<std::uint32_t>(std::clamp<double>(lost_steps / lost_share, hold_min, most));
  b.hold_left = b.hold;
  b.doubt = std::clamp(b.promised / b.real.gain(), b.doubt, doubt_max);
  b.promised = 0;
  b.real = {};
}

} // namespace rollcast
