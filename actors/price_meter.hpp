#pragma once

#include "cluster/policy/view.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace rollcast {

/// Measures what it costs a worker to have KV again: by computing it, by pulling it, from its spill
/// space. The newer a measurement the more it weighs. One that is older than `price_age_max` is
/// forgotten: a price that looks high keeps its way from being taken, so nothing would ever correct
/// it.
class price_meter {
public:
  using clock = std::chrono::steady_clock;

  /// A step that computed `rows`, of responses or of prompts: a device takes them alike. One of
  /// fewer than `step_rows_min` is mostly its fixed part and tells nothing of a row.
  void stepped(std::uint64_t rows, clock::duration time, clock::time_point now);
  /// A pull, from the request to the import.
  void pulled(std::uint64_t bytes, clock::duration time, clock::time_point now);
  void spilled(std::uint64_t bytes, clock::duration time, clock::time_point now);
  void restored(std::uint64_t bytes, clock::duration time, clock::time_point now);

  /// What is known at `now`; 0 is unknown.
  policy::kv_prices prices(clock::time_point now) const;

  static constexpr std::uint64_t step_rows_min = 16;
  static constexpr clock::duration price_age_max = std::chrono::minutes{1};

private:
  /// Time as a line over size, by least squares over all there was, the newest weighing most.
  class line {
  public:
    /// @param fading  Weight of what was known when a measurement is added.
    explicit line(double fading = 0.875) : fading_(fading) {}
    void add(double size, clock::duration time, clock::time_point now);
    bool known(clock::time_point now) const;
    double fixed_ns() const;
    double ns_each() const;
    double ns_each_through_zero() const { return sizes_times_ns_ / squares_; }

  private:
    bool is_line() const;

    double fading_;
    double weight_ = 0;
    double sizes_ = 0;
    double ns_ = 0;
    double squares_ = 0;
    double sizes_times_ns_ = 0;
    clock::time_point last_;
  };

  line steps_{0.99}; // there are many, of sizes much alike
  line pulls_;
  line spills_;
  line restores_;
};

} // namespace rollcast
