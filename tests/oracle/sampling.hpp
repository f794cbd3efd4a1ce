#pragma once

#include "kernels/numerics.hpp"
#include "kernels/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

namespace rollcast::oracle {

struct sampled {
  std::size_t token;
  double logprob;
  double kept_mass;
};

/// The sampler by its definition, in double, with a full sort: temperature, bans, top-k, top-p over
/// what top-k left, min-p, then the largest z + noise. Noise comes from the house's Philox and
/// logarithm, which have tests of their own.
inline sampled sample(const std::vector<float>& logits, const kernels::sample_params& p) {
  const std::size_t n = logits.size();
  const bool greedy = p.temperature == 0.0f;
  std::vector<double> z(n), prob(n);
  for (std::size_t i = 0; i < n; ++i)
    z[i] = std::isnan(logits[i])
             ? -INFINITY
             : static_cast<double>(greedy ? logits[i] : logits[i] / p.temperature);
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double x : z)
    sum += std::exp(x - top);
  for (std::size_t i = 0; i < n; ++i)
    prob[i] = std::exp(z[i] - top) / sum;
  std::vector<std::size_t> kept(n);
  std::iota(kept.begin(), kept.end(), std::size_t{0});
  std::erase_if(kept, [&](std::size_t i) {
    return std::find(p.banned, p.banned + p.banned_count, static_cast<std::int32_t>(i))
           != p.banned + p.banned_count;
  });
  std::stable_sort(kept.begin(), kept.end(),
                   [&](std::size_t a, std::size_t b) { return z[a] > z[b]; });
  const auto log_prob = [&](std::size_t i) { return z[i] - top - std::log(sum); };
  if (greedy)
    return {kept[0], log_prob(kept[0]), 1.0};
  if (p.top_k != 0 && p.top_k < kept.size())
    kept.resize(p.top_k);
  double mass = 0;
  for (const std::size_t i : kept)
    mass += prob[i];
  if (p.top_p < 1.0f) {
    // The sampler's masses are exact, so that equal shares tie; here they must not differ by noise.
    const double target = static_cast<double>(p.top_p) * mass * (1.0 - 1e-12);
    double prefix = 0;
    std::size_t count = 0;
    while (count < kept.size() && (count == 0 || prefix < target))
      prefix += prob[kept[count++]];
    kept.resize(count);
  }
  const double least = static_cast<double>(p.min_p) * prob[kept[0]];
  std::erase_if(kept, [&](std::size_t i) { return prob[i] < least; });
  double kept_mass = 0, best = -INFINITY;
  std::size_t token = kept[0];
  std::sort(kept.begin(), kept.end());
  for (const std::size_t i : kept) {
    kept_mass += prob[i];
    const double score =
      z[i]
      + kernels::gumbel(kernels::token_bits(p.seed, p.position, static_cast<std::uint32_t>(i)));
    if (score > best) {
      best = score;
      token = i;
    }
  }
  return {token, log_prob(token), kept_mass};
}

} // namespace rollcast::oracle
