#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampling.hpp"
#include "kernels/cuda/sampling_row.cuh"

namespace rollcast::kernels::cuda {
namespace {

/// What the first passes find out about a row.
struct row_summary {
  float z_max; ///< Of all tokens.
  float top;   ///< Of those that are not banned.
  std::uint32_t
    best; ///< Lowest token at `top`, or at `z_max` if all with a probability are banned.
  std::uint64_t mass;  ///< Of all tokens, relative to `z_max`.
  std::uint64_t kept;  ///< Of those that are not banned, relative to `top`.
  std::uint64_t near;  ///< Of those of them within eight nats of `top`.
  std::uint32_t count; ///< Tokens not banned with a probability.
  std::uint32_t near_count;
};

constexpr float near_nats = 8.0f;
constexpr std::uint32_t no_token = 0xffffffffu;

ROLLCAST_DEVICE row_summary summarize(const logit_row& row) {
  row_summary sum{};
  float all = minus_infinity, kept = minus_infinity;
  for (std::uint32_t t = simt::thread_x(); t < row.vocabulary; t += sample_threads) {
    const float z = row.z_with_banned(t);
    all = z > all ? z : all;
    kept = z > kept && !row.is_banned(t) ? z : kept;
  }
  sum.z_max = block_max(all) + 0.0f;
  sum.top = block_max(kept) + 0.0f;
  if (sum.z_max == minus_infinity)
    return sum;
  const bool forced = sum.top == minus_infinity;
  std::uint64_t mass = 0, kept_mass = 0, near_mass = 0;
  std::uint32_t best = no_token, count = 0, near_count = 0;
  for (std::uint32_t t = simt::thread_x(); t < row.vocabulary; t += sample_threads) {
    const float z = row.z_with_banned(t);
    const bool banned = row.is_banned(t);
    const std::uint64_t of_all = fixed_weight(exp_f32(z - sum.z_max));
    mass += of_all;
    if (z == (forced ? sum.z_max : sum.top) && (forced || !banned))
      best = t < best ? t : best;
    if (banned || z == minus_infinity)
      continue;
    const std::uint64_t weight = sum.top == sum.z_max ? of_all : fixed_weight(exp_f32(z - sum.top));
    kept_mass += weight;
    ++count;
    if (z >= sum.top - near_nats) {
      near_mass += weight;
      ++near_count;
    }
  }
  sum.mass = block_sum(mass);
  sum.kept = block_sum(kept_mass);
  sum.near = block_sum(near_mass);
  sum.best = block_min(best);
  // Counts are below 2^32 together.
  const std::uint64_t counts = block_sum(std::uint64_t{count} << 32 | near_count);
  sum.count = static_cast<std::uint32_t>(counts >> 32);
  sum.near_count = static_cast<std::uint32_t>(counts);
  return sum;
}

/// The lowest token that is not banned, or `otherwise` if all are.
ROLLCAST_DEVICE std::uint32_t forced_token(const logit_row& row, std::uint32_t otherwise) {
  std::uint32_t lowest = no_token;
  for (std::uint32_t t = simt::thread_x(); t < row.vocabulary; t += sample_threads)
    if (!row.is_banned(t))
      lowest = t < lowest ? t : lowest;
  lowest = block_min(lowest);
  return lowest == no_token ? otherwise : lowest;
}

/// The key behind which top-k and top-p leave nothing.
ROLLCAST_DEVICE std::uint64_t find_cut(const logit_row& row, const sample_params& params,
                                       const row_summary& sum) {
  std::uint64_t cut = ~std::uint64_t{0}, kept = sum.kept;
  if (params.top_k != 0 && params.top_k <= sum.count) {
    const float floor = params.top_k <= sum.near_count ? sum.top - near_nats : minus_infinity;
    const row_cut found = select_cut(row, sum.top, floor, {params.top_k, 0.0});
    cut = found.key;
    kept = found.mass;
  }
  if (params.top_p < 1.0f) {
    const double target = static_cast<double>(params.top_p) * static_cast<double>(kept);
    const float floor =
      static_cast<double>(sum.near) >= target ? sum.top - near_nats : minus_infinity;
    cut = select_cut(row, sum.top, floor, {0, target}).key;
  }
  return cut;
}

/// The best token so far: highest score, then lowest id.
struct runner {
  double score;
  std::uint32_t token;

  ROLLCAST_DEVICE void race(double other, std::uint32_t other_token) {
    if (other > score || (other == score && other_token < token)) {
      score = other;
      token = other_token;
    }
  }
  /// Twin of `runner::bound` in kernels/cpu/sampling.cpp.
  ROLLCAST_DEVICE float bound(float top) const {
    const double size = score < 0 ? -score : score;
    const double lead = static_cast<double>(top) - score + size * 0x1p-50;
    const double bound = exp_f64(lead) * 0x1.004p+24;
    return static_cast<float>(bound < 0x1p+127 ? bound : 0x1p+127);
  }
};

struct race_result {
  runner winner;
  std::uint64_t kept;
};

/// Lets every token that the filters leave run; see kernels/cpu/sampling-inl.hpp, `race_row`, for
/// why the bound loses no winner.
ROLLCAST_DEVICE race_result race_row(const logit_row& row, const sample_params& params,
                                     const row_summary& sum, std::uint64_t cut) {
  const float least = params.min_p < 1.0f ? params.min_p : 1.0f;
  const noise_words first = philox_words(params.seed, sum.best / 4, params.position);
  runner best{static_cast<double>(sum.top) + gumbel(first.word[sum.best % 4]), sum.best};
  float bound = best.bound(sum.top);
  std::uint64_t kept = 0;
  const std::uint32_t quads = (row.vocabulary + 3) / 4;
  for (std::uint32_t quad = simt::thread_x(); quad < quads; quad += sample_threads) {
    const noise_words noise = philox_words(params.seed, quad, params.position);
#pragma unroll
    for (std::uint32_t i = 0; i < 4; ++i) {
      const std::uint32_t t = quad * 4 + i;
      if (t >= row.vocabulary)
        break;
      const float z = row.z(t);
      if (z == minus_infinity || rank_key(z, t) > cut)
        continue;
      const float w = exp_f32(z - sum.top);
      if (w < least)
        continue;
      kept += fixed_weight(w);
      if (w == 0.0f || static_cast<float>(noise.word[i] >> 8) > w * bound)
        continue;
      best.race(static_cast<double>(z) + gumbel(noise.word[i]), t);
      bound = best.bound(sum.top);
    }
  }
#pragma unroll
  for (unsigned mask = 16; mask > 0; mask /= 2) {
    const double score = simt::shuffle_xor(best.score, mask);
    best.race(score, simt::shuffle_xor(best.token, mask));
  }
  // Of the warps' winners the best score, and of those who have it the lowest token.
  const double score = reduce_block(best.score, [](double a, double b) { return a > b ? a : b; });
  const std::uint32_t token = block_min(best.score == score ? best.token : no_token);
  return {{score, token}, block_sum(kept)};
}

/// Twin of `kept_share` in kernels/cpu/sampling.cpp.
ROLLCAST_DEVICE float kept_share(std::uint64_t kept, const row_summary& sum) {
  const double scale = exp_f64(static_cast<double>(sum.top) - static_cast<double>(sum.z_max));
  const double share = static_cast<double>(kept) * scale / static_cast<double>(sum.mass);
  return static_cast<float>(share < 1.0 ? share : 1.0);
}

ROLLCAST_DEVICE sampled_token choose(const logit_row& row, const sample_params& params) {
  const row_summary sum = summarize(row);
  if (sum.z_max == minus_infinity)
    return {static_cast<std::int32_t>(forced_token(row, 0)), minus_infinity, 0.0f};
  if (sum.top == minus_infinity) {
    const std::uint32_t token = forced_token(row, sum.best);
    const float z = token == sum.best ? sum.z_max : minus_infinity;
    return {static_cast<std::int32_t>(token), logprob_of(z, sum.z_max, sum.mass), 0.0f};
  }
  if (params.temperature == 0.0f)
    return {static_cast<std::int32_t>(sum.best), logprob_of(sum.top, sum.z_max, sum.mass), 1.0f};
  std::uint64_t cut = ~std::uint64_t{0};
  const bool cuts = params.top_k != 0 || params.top_p < 1.0f;
  if (cuts)
    cut = find_cut(row, params, sum);
  const race_result race = race_row(row, params, sum, cut);
  const float logprob = logprob_of(row.z(race.winner.token), sum.z_max, sum.mass);
  const bool whole = !cuts && !(params.min_p > 0.0f) && params.banned_count == 0;
  return {static_cast<std::int32_t>(race.winner.token), logprob,
          whole ? 1.0f : kept_share(race.kept, sum)};
}

/// Grid: rows.
ROLLCAST_KERNEL(sample_threads, 1) sample_kernel(sample_args args) {
  const std::size_t at = simt::block_x();
  const sample_params params = args.params[at];
  const auto vocabulary = static_cast<std::uint32_t>(args.vocabulary);
  std::uint32_t* const banned = reinterpret_cast<std::uint32_t*>(&row_shared() + 1);
  if (params.banned_count != 0) {
    for (std::uint32_t i = simt::thread_x(); i < (vocabulary + 31) / 32; i += sample_threads)
      banned[i] = 0;
    simt::sync_block();
    // One thread: there are a few of them, and a token may be named twice.
    if (simt::thread_x() == 0)
      for (std::size_t i = 0; i < params.banned_count; ++i) {
        const auto token = static_cast<std::uint32_t>(params.banned[i]);
        banned[token / 32] |= 1u << token % 32;
      }
    simt::sync_block();
  }
  const logit_row row{args.logits + at * args.logits_stride, vocabulary,
                      params.temperature == 0.0f ? 1.0f : params.temperature,
                      params.banned_count != 0 ? banned : nullptr};
  const sampled_token chosen = choose(row, params);
  if (simt::thread_x() == 0)
    args.out[at] = chosen;
}

/// Grid: rows.
ROLLCAST_KERNEL(sample_threads, 1) score_kernel(score_args args) {
  const std::size_t at = simt::block_x();
  const float temperature = args.temperatures[at];
  const logit_row row{args.logits + at * args.logits_stride,
                      static_cast<std::uint32_t>(args.vocabulary),
                      temperature == 0.0f ? 1.0f : temperature, nullptr};
  const row_summary sum = summarize(row);
  if (simt::thread_x() != 0)
    return;
  const float z = row.z(static_cast<std::uint32_t>(args.tokens[at]));
  args.out[at] = sum.z_max == minus_infinity ? minus_infinity : logprob_of(z, sum.z_max, sum.mass);
}

constexpr std::size_t vocabulary_max = std::size_t{1} << 20;

} // namespace

device_status sample(const sample_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  if (args.vocabulary == 0 || args.vocabulary > vocabulary_max)
    return refused("sample: a vocabulary of " + std::to_string(args.vocabulary)
                   + " tokens, must be 1 to 1048576");
  const launch_shape shape{{static_cast<unsigned>(args.rows), 1, 1},
                           sample_threads,
                           sizeof(sample_shared) + (args.vocabulary + 31) / 32 * 4};
  return launch("sample", sample_kernel, shape, args, stream);
}

device_status score(const score_args& args, stream_handle stream) {
  if (args.rows == 0)
    return {};
  const launch_shape shape{
    {static_cast<unsigned>(args.rows), 1, 1}, sample_threads, sizeof(sample_shared)};
  return launch("score", score_kernel, shape, args, stream);
}

} // namespace rollcast::kernels::cuda
