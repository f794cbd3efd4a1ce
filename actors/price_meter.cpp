#include "actors/price_meter.hpp"

#include <algorithm>
#include <cmath>

namespace rollcast {
namespace {

std::uint64_t whole(double x) {
  return static_cast<std::uint64_t>(std::llround(std::clamp(x, 1.0, 1e15)));
}

} // namespace

void price_meter::line::add(double size, clock::duration time, clock::time_point now) {
  const auto ns = std::chrono::duration<double, std::nano>(time).count();
  if (now - last_ > price_age_max)
    *this = line{fading_};
  weight_ = weight_ * fading_ + 1;
  sizes_ = sizes_ * fading_ + size;
  ns_ = ns_ * fading_ + ns;
  squares_ = squares_ * fading_ + size * size;
  sizes_times_ns_ = sizes_times_ns_ * fading_ + size * ns;
  last_ = now;
}

bool price_meter::line::known(clock::time_point now) const {
  return weight_ > 0 && squares_ > 0 && now - last_ <= price_age_max;
}

/// Sizes that are all alike, or noise that slopes down, say nothing about a fixed part.
bool price_meter::line::is_line() const {
  const auto spread = weight_ * squares_ - sizes_ * sizes_;
  const auto slope = weight_ * sizes_times_ns_ - sizes_ * ns_;
  const auto fixed = squares_ * ns_ - sizes_ * sizes_times_ns_;
  return spread > 0.01 * weight_ * squares_ && slope > 0 && fixed > 0;
}

double price_meter::line::fixed_ns() const {
  if (!is_line())
    return 0;
  return (squares_ * ns_ - sizes_ * sizes_times_ns_) / (weight_ * squares_ - sizes_ * sizes_);
}

double price_meter::line::ns_each() const {
  if (!is_line())
    return ns_each_through_zero();
  return (weight_ * sizes_times_ns_ - sizes_ * ns_) / (weight_ * squares_ - sizes_ * sizes_);
}

void price_meter::stepped(std::uint64_t rows, clock::duration time, clock::time_point now) {
  if (rows >= step_rows_min)
    steps_.add(static_cast<double>(rows), time, now);
}

void price_meter::pulled(std::uint64_t bytes, clock::duration time, clock::time_point now) {
  pulls_.add(static_cast<double>(bytes), time, now);
}

void price_meter::spilled(std::uint64_t bytes, clock::duration time, clock::time_point now) {
  spills_.add(static_cast<double>(bytes), time, now);
}

void price_meter::restored(std::uint64_t bytes, clock::duration time, clock::time_point now) {
  restores_.add(static_cast<double>(bytes), time, now);
}

policy::kv_prices price_meter::prices(clock::time_point now) const {
  policy::kv_prices known;
  if (steps_.known(now))
    known.recompute_ns_per_token = whole(steps_.ns_each());
  if (pulls_.known(now)) {
    known.move_fixed_ns = whole(pulls_.fixed_ns());
    known.move_ps_per_byte = whole(pulls_.ns_each() * 1000);
  }
  // Half of it alone would make spilling look cheaper than it is.
  if (spills_.known(now) && restores_.known(now))
    known.restore_ps_per_byte =
      whole((spills_.ns_each_through_zero() + restores_.ns_each_through_zero()) * 1000);
  return known;
}

} // namespace rollcast
