#include "kernels/cpu/sampling_filter.hpp"

#include "kernels/numerics.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace rollcast::kernels {
namespace {

/// Buckets never decrease as z falls, because subtraction and multiplication round monotonically.
std::size_t bucket_of(float z, float z_max) noexcept {
  const float depth = (z_max - z) * 64.0f;
  return depth < static_cast<float>(sampling_buckets - 1) ? static_cast<std::size_t>(depth)
                                                          : sampling_buckets - 1;
}

bool kept_at_all(float z) noexcept {
  return z > -std::numeric_limits<float>::infinity();
}

/// The tokens of one row, cut into buckets.
struct bucketed_row {
  const float* z;
  const float* w;
  std::size_t vocabulary;
  float z_max;
  sampling_histogram& histogram;
  std::uint32_t* order;

  void fill() noexcept {
    std::memset(&histogram, 0, sizeof histogram);
    for (std::size_t i = 0; i < vocabulary; ++i) {
      if (!kept_at_all(z[i]))
        continue;
      const std::size_t bucket = bucket_of(z[i], z_max);
      ++histogram.count[bucket];
      histogram.mass[bucket] += fixed_weight(w[i]);
    }
  }

  /// Writes the tokens of a bucket to `order`, best first.
  void sort(std::size_t bucket) noexcept {
    std::size_t n = 0;
    for (std::uint32_t i = 0; i < vocabulary && n < histogram.count[bucket]; ++i)
      if (kept_at_all(z[i]) && bucket_of(z[i], z_max) == bucket)
        order[n++] = i;
    std::sort(order, order + n, [this](std::uint32_t a, std::uint32_t b) {
      return z[a] != z[b] ? z[a] > z[b] : a < b;
    });
  }
};

} // namespace

sampling_cut find_sampling_cut(const float* z, const float* w, std::size_t vocabulary, float z_max,
                               std::uint32_t top_k, float top_p, sampling_histogram& histogram,
                               std::uint32_t* order) noexcept {
  bucketed_row row{z, w, vocabulary, z_max, histogram, order};
  row.fill();
  constexpr std::size_t none = sampling_buckets;
  std::uint64_t kept_mass = 0;
  std::uint64_t kept = 0;
  std::size_t bucket = 0, sorted = none;
  sampling_cut cut{-std::numeric_limits<float>::infinity(), 0};
  // Top-k: whole buckets while they fit, then the best of the next one.
  for (; bucket < sampling_buckets; ++bucket) {
    if (top_k != 0 && kept + histogram.count[bucket] >= top_k)
      break;
    kept += histogram.count[bucket];
    kept_mass += histogram.mass[bucket];
  }
  if (bucket < sampling_buckets) {
    row.sort(sorted = bucket);
    // From here on the bucket holds only what top-k leaves of it.
    histogram.count[bucket] = static_cast<std::uint32_t>(top_k - kept);
    histogram.mass[bucket] = 0;
    for (std::size_t i = 0; i < histogram.count[bucket]; ++i) {
      histogram.mass[bucket] += fixed_weight(w[order[i]]);
      cut = {z[order[i]], order[i]};
    }
    kept_mass += histogram.mass[bucket];
  }
  if (top_p >= 1.0f)
    return cut;
  const double target = static_cast<double>(top_p) * static_cast<double>(kept_mass);
  std::uint64_t mass = 0;
  std::size_t last = 0;
  while (histogram.count[last] == 0 || static_cast<double>(mass + histogram.mass[last]) < target)
    mass += histogram.mass[last++];
  if (last != sorted)
    row.sort(last);
  std::size_t i = 0;
  do {
    mass += fixed_weight(w[order[i]]);
    cut = {z[order[i]], order[i]};
  } while (static_cast<double>(mass) < target && ++i < histogram.count[last]);
  return cut;
}

} // namespace rollcast::kernels
