#pragma once

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// The last token that top-k and top-p keep, in the order (z descending, token id ascending).
struct sampling_cut {
  float z;
  std::uint32_t token;
};

/// Buckets of `sampling_filter`'s histogram, 1/64 nat wide, down from the largest z.
inline constexpr std::size_t sampling_buckets = 2048;

/// Working memory of `sampling_filter`.
struct sampling_histogram {
  std::uint64_t mass[sampling_buckets]; ///< Sum of `fixed_weight`.
  std::uint32_t count[sampling_buckets];
};

/// Finds where top-k, and then top-p over the probabilities renormalised over what top-k left, cut
/// the vocabulary: the first `top_k` tokens, and of these the shortest prefix, of at least one
/// token, whose weight reaches `top_p` times theirs. Weights are `fixed_weight(w[i])`, so that
/// their sums are exact, and only the bucket of the cut has to be sorted.
/// @param z      [vocabulary]; -inf is never kept; at least one is finite.
/// @param w      [vocabulary], exp(z - z_max).
/// @param top_k  0 for all. @param top_p 1 or more for all.
/// @param order  [vocabulary] of scratch.
sampling_cut find_sampling_cut(const float* z, const float* w, std::size_t vocabulary, float z_max,
                               std::uint32_t top_k, float top_p, sampling_histogram& histogram,
                               std::uint32_t* order) noexcept;

} // namespace rollcast::kernels
