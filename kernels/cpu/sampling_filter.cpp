#include "kernels/cpu/sampling_filter.hpp"

#include "kernels/numerics.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace rollcast::kernels {
namespace {

/// The candidates, cut into buckets of z.
struct bucketed_row {
  const sampling_candidates& row;
  sampling_histogram& histogram;
  std::uint32_t* order;

  /// Never decreases as z falls, because subtraction and multiplication round monotonically.
  std::size_t bucket_of(std::uint32_t token) const noexcept {
    const float depth = (row.z_max - row.z[token]) * 64.0f;
    return depth < static_cast<float>(sampling_buckets - 1) ? static_cast<std::size_t>(depth)
                                                            : sampling_buckets - 1;
  }

  void fill() noexcept {
    std::memset(&histogram, 0, sizeof histogram);
    for (std::size_t i = 0; i < row.count; ++i) {
      const std::size_t bucket = bucket_of(row.token[i]);
      ++histogram.count[bucket];
      histogram.mass[bucket] += fixed_weight(row.w[row.token[i]]);
    }
  }

  /// Writes the tokens of a bucket to `order`, best first.
  void sort(std::size_t bucket) noexcept {
    std::size_t n = 0;
    for (std::size_t i = 0; n < histogram.count[bucket]; ++i)
      if (bucket_of(row.token[i]) == bucket)
        order[n++] = row.token[i];
    std::sort(order, order + n, [this](std::uint32_t a, std::uint32_t b) {
      return row.z[a] != row.z[b] ? row.z[a] > row.z[b] : a < b;
    });
  }

  sampling_cut cut_after(std::size_t i) const noexcept { return {row.z[order[i]], order[i]}; }
};

} // namespace

std::optional<sampling_cut> find_sampling_cut(const sampling_candidates& candidates,
                                              std::uint32_t top_k, float top_p,
                                              sampling_histogram& histogram,
                                              std::uint32_t* order) noexcept {
  bucketed_row row{candidates, histogram, order};
  row.fill();
  sampling_cut cut{-std::numeric_limits<float>::infinity(), 0};
  std::uint64_t kept_mass = candidates.mass; // of what top-k keeps
  std::size_t sorted = sampling_buckets;     // the bucket that `order` holds
  if (top_k != 0 && top_k <= candidates.count) {
    std::uint64_t kept = 0;
    std::size_t bucket = 0;
    kept_mass = 0;
    for (; kept + histogram.count[bucket] < top_k; ++bucket) {
      kept += histogram.count[bucket];
      kept_mass += histogram.mass[bucket];
    }
    row.sort(sorted = bucket);
    // From here on the bucket holds only what top-k leaves of it, and those after it are not used.
    histogram.count[bucket] = static_cast<std::uint32_t>(top_k - kept);
    histogram.mass[bucket] = 0;
    for (std::size_t i = 0; i < histogram.count[bucket]; ++i)
      histogram.mass[bucket] += fixed_weight(candidates.w[order[i]]);
    kept_mass += histogram.mass[bucket];
    cut = row.cut_after(histogram.count[bucket] - 1);
  } else if (top_k != 0 && !candidates.whole) {
    return std::nullopt;
  }
  if (top_p >= 1.0f)
    return cut;
  const double target = static_cast<double>(top_p) * static_cast<double>(kept_mass);
  std::uint64_t mass = 0;
  std::size_t bucket = 0;
  while (histogram.count[bucket] == 0
         || static_cast<double>(mass + histogram.mass[bucket]) < target) {
    mass += histogram.mass[bucket];
    if (++bucket == sampling_buckets)
      return std::nullopt;
  }
  if (bucket != sorted)
    row.sort(bucket);
  std::size_t i = 0;
  do
    mass += fixed_weight(candidates.w[order[i]]);
  while (static_cast<double>(mass) < target && ++i < histogram.count[bucket]);
  return row.cut_after(i);
}

} // namespace rollcast::kernels
