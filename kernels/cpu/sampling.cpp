#include "kernels/sampling.hpp"

#include "kernels/cpu/sampling_filter.hpp"
#include "kernels/cpu/sampling_row.hpp"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sampling.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/sampling-inl.hpp"
// clang-format on

#if HWY_ONCE
namespace rollcast::kernels {

HWY_EXPORT(row_max);
HWY_EXPORT(row_weights);
HWY_EXPORT(gather_row);
HWY_EXPORT(keep_row);
HWY_EXPORT(race_row);

float runner::bound(float z_max) const noexcept {
  const double lead = static_cast<double>(z_max) - score + std::abs(score) * 0x1p-50;
  return static_cast<float>(std::min(exp_f64(lead) * 0x1.004p+24, 0x1p+127));
}

bool race_few(const float* z, const float* w, const std::uint32_t* bits, std::size_t first,
              std::size_t count, float z_max, runner& best) noexcept {
  bool changed = false;
  float bound = best.bound(z_max);
  for (std::size_t i = 0; i < count; ++i) {
    // A weight of zero is a token that was filtered, or one too far behind for any noise.
    if (w[i] == 0.0f || static_cast<float>(bits[i] >> 8) > w[i] * bound)
      continue;
    const auto token = static_cast<std::uint32_t>(first + i);
    const double score = static_cast<double>(z[i]) + gumbel(bits[i]);
    if (score > best.score || (score == best.score && token < best.token)) {
      best = {score, token};
      bound = best.bound(z_max);
      changed = true;
    }
  }
  return changed;
}

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::size_t padded(std::size_t vocabulary) noexcept {
  return (vocabulary + reduce_lanes - 1) / reduce_lanes * reduce_lanes;
}

/// The row's largest z. Division by a positive number and the clamp keep order, so this is the
/// largest of the divided logits too. Adding +0 makes a largest z of -0 the +0 it equals.
float largest_z(const float* logits, std::size_t vocabulary, float temperature) noexcept {
  const float z = HWY_DYNAMIC_DISPATCH(row_max)(logits, vocabulary) / temperature;
  return std::min(z, std::numeric_limits<float>::max()) + 0.0f;
}

/// (z - z_max) - log(sum of exp(z - z_max)), in double, rounded once; the +0 keeps a certain
/// token's from being -0.
float logprob_of(float z, float z_max, std::uint64_t mass) noexcept {
  if (z == -infinity)
    return -infinity;
  const double shifted = static_cast<double>(z) - static_cast<double>(z_max);
  const double log_sum = log_f64(static_cast<double>(mass) * fixed_weight_unit);
  return static_cast<float>(shifted - log_sum) + 0.0f;
}

/// One row in scratch memory.
struct sampling_row {
  float* z;
  float* w;
  std::uint32_t* candidates;
  std::uint32_t* order;
  sampling_histogram* histogram;
  std::size_t vocabulary;

  std::uint32_t lowest_at(float value) const noexcept {
    return static_cast<std::uint32_t>(std::find(z, z + vocabulary, value) - z);
  }

  /// Takes the banned tokens away. @returns what is left of `mass`.
  std::uint64_t ban(const sample_params& params, std::uint64_t mass) const noexcept {
    for (std::size_t i = 0; i < params.banned_count; ++i) {
      const auto token = static_cast<std::size_t>(params.banned[i]);
      mass -= fixed_weight(w[token]);
      w[token] = 0.0f; // So that a token named twice is taken away once.
      z[token] = -infinity;
    }
    return mass;
  }
};

sampling_row place_row(std::byte* scratch, std::size_t vocabulary) noexcept {
  const std::size_t n = padded(vocabulary);
  auto* floats = reinterpret_cast<float*>(scratch);
  auto* ids = reinterpret_cast<std::uint32_t*>(floats + 2 * n);
  return {floats,    floats + n, ids, ids + n, reinterpret_cast<sampling_histogram*>(ids + 2 * n),
          vocabulary};
}

/// When all tokens with a probability are banned: the lowest id that is not, or, if all are, the
/// best of the banned.
std::uint32_t forced_token(const sample_params& params, std::uint32_t best,
                           std::size_t vocabulary) noexcept {
  const auto* end = params.banned + params.banned_count;
  for (std::uint32_t i = 0; i < vocabulary; ++i)
    if (std::find(params.banned, end, static_cast<std::int32_t>(i)) == end)
      return i;
  return best;
}

noise_stream open_stream(std::uint64_t seed, std::uint32_t position) noexcept {
  noise_stream stream;
  stream.position = position;
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (std::size_t round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
    stream.key0[round] = k0;
    stream.key1[round] = k1;
  }
  return stream;
}

/// Finds the cut of top-k and top-p, among the tokens within eight nats of the best if it lies
/// there, as it does for nearly every row of a trained model.
sampling_cut find_cut(const sampling_row& row, const sample_params& params, float top,
                      std::uint64_t mass) noexcept {
  constexpr float lowest = -std::numeric_limits<float>::max();
  for (const float bound : {top - 8.0f, lowest}) {
    const std::size_t count =
      HWY_DYNAMIC_DISPATCH(gather_row)(row.z, row.vocabulary, bound, row.candidates);
    const sampling_candidates candidates{row.z, row.w, row.candidates, count, bound == lowest,
                                         top,   mass};
    if (const auto cut =
          find_sampling_cut(candidates, params.top_k, params.top_p, *row.histogram, row.order))
      return *cut;
  }
  return {-infinity, 0}; // Not reached: the second round has the whole row.
}

/// Zeroes the weights that top-k, top-p and min-p take away.
/// @param mass the sum of the weights before. @returns the sum after.
std::uint64_t filter_row(const sampling_row& row, const sample_params& params, float top,
                         std::uint64_t mass) noexcept {
  sampling_cut cut{-infinity, 0};
  if (params.top_k != 0 || params.top_p < 1.0f)
    cut = find_cut(row, params, top, mass);
  // The best token's weight is 1, so that it always stays.
  const float least = std::min(params.min_p, 1.0f);
  return HWY_DYNAMIC_DISPATCH(keep_row)(row.z, row.w, row.vocabulary, cut.z, cut.token, least);
}

/// Probability of the kept tokens, whose weights are relative to `top`, in a row whose weights
/// relative to `z_max` sum to `mass`.
float kept_share(std::uint64_t kept, float top, std::uint64_t mass, float z_max) noexcept {
  const double scale = exp_f64(static_cast<double>(top) - static_cast<double>(z_max));
  const double share = static_cast<double>(kept) * scale / static_cast<double>(mass);
  return static_cast<float>(std::min(share, 1.0));
}

} // namespace

std::size_t sample_scratch_bytes(std::size_t vocabulary) noexcept {
  return padded(vocabulary) * 2 * (sizeof(float) + sizeof(std::uint32_t))
         + sizeof(sampling_histogram);
}

sampled_token sample_token_cpu(const float* logits, std::size_t vocabulary,
                               const sample_params& params, std::byte* scratch) noexcept {
  const bool greedy = params.temperature == 0.0f;
  const float temperature = greedy ? 1.0f : params.temperature;
  const sampling_row row = place_row(scratch, vocabulary);
  const float z_max = largest_z(logits, vocabulary, temperature);
  if (z_max == -infinity)
    return {static_cast<std::int32_t>(forced_token(params, 0, vocabulary)), -infinity, 0.0f};
  std::fill(row.z + vocabulary, row.z + padded(vocabulary), -infinity);
  std::fill(row.w + vocabulary, row.w + padded(vocabulary), 0.0f);
  const std::uint64_t mass =
    HWY_DYNAMIC_DISPATCH(row_weights)(logits, vocabulary, temperature, z_max, row.z, row.w);
  std::uint32_t best = row.lowest_at(z_max);
  float top = z_max; // The largest z that is not banned; the weights are relative to it.
  std::uint64_t kept = row.ban(params, mass);
  if (row.z[best] != z_max) {
    top = HWY_DYNAMIC_DISPATCH(row_max)(row.z, vocabulary) + 0.0f;
    if (top == -infinity) {
      const std::uint32_t token = forced_token(params, best, vocabulary);
      const float z = token == best ? z_max : -infinity;
      return {static_cast<std::int32_t>(token), logprob_of(z, z_max, mass), 0.0f};
    }
    best = row.lowest_at(top);
    kept = HWY_DYNAMIC_DISPATCH(row_weights)(row.z, vocabulary, 1.0f, top, row.z, row.w);
  }
  if (greedy)
    return {static_cast<std::int32_t>(best), logprob_of(row.z[best], z_max, mass), 1.0f};
  const bool filtered = params.top_k != 0 || params.top_p < 1.0f || params.min_p > 0.0f;
  if (filtered)
    kept = filter_row(row, params, top, kept);
  runner winner{static_cast<double>(row.z[best])
                  + gumbel(token_bits(params.seed, params.position, best)),
                best};
  HWY_DYNAMIC_DISPATCH(race_row)
  (row.z, row.w, vocabulary, top, open_stream(params.seed, params.position), winner);
  const float logprob = logprob_of(row.z[winner.token], z_max, mass);
  const bool whole = !filtered && params.banned_count == 0;
  return {static_cast<std::int32_t>(winner.token), logprob,
          whole ? 1.0f : kept_share(kept, top, mass, z_max)};
}

float token_logprob_cpu(const float* logits, std::size_t vocabulary, float temperature,
                        std::int32_t token) noexcept {
  if (temperature == 0.0f)
    temperature = 1.0f;
  const float z_max = largest_z(logits, vocabulary, temperature);
  if (z_max == -infinity)
    return -infinity;
  const std::uint64_t mass =
    HWY_DYNAMIC_DISPATCH(row_weights)(logits, vocabulary, temperature, z_max, nullptr, nullptr);
  const float z = logits[token] / temperature;
  return logprob_of(z != z ? -infinity : std::min(z, std::numeric_limits<float>::max()), z_max,
                    mass);
}

} // namespace rollcast::kernels
#endif
