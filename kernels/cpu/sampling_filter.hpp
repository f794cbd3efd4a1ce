#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace rollcast::kernels {

/// The last token that top-k and top-p keep, in the order (z descending, token id ascending).
struct sampling_cut {
  float z;
  std::uint32_t token;
};

/// Buckets of the histogram of `find_sampling_cut`, 1/64 nat wide, down from the largest z.
inline constexpr std::size_t sampling_buckets = 2048;

/// Working memory of `find_sampling_cut`.
struct sampling_histogram {
  std::uint64_t mass[sampling_buckets]; ///< Sum of `fixed_weight`.
  std::uint32_t count[sampling_buckets];
};

/// The best tokens of a row: all those whose z is at least some bound.
struct sampling_candidates {
  const float* z;             ///< By token id.
  const float* w;             ///< exp(z - z_max), by token id.
  const std::uint32_t* token; ///< Ids of the candidates, ascending. All have a z above -inf.
  std::size_t count;
  bool whole;         ///< Whether no token with a z above -inf is missing.
  float z_max;        ///< Their largest z.
  std::uint64_t mass; ///< Sum of `fixed_weight(w)` over the whole row.
};

/// Finds where top-k, and then top-p over the probabilities renormalised over what top-k left, cut
/// the row: the first `top_k` tokens, and of these the shortest prefix, of at least one token,
/// whose weight reaches `top_p` times theirs. Weights are `fixed_weight(w)`, so that their sums are
/// exact, and only the bucket in which a cut lies has to be sorted.
/// @param top_k 0 for all. @param top_p 1 or more for all.
/// @param order scratch for as many ids as there are candidates.
/// @returns nothing if the cut lies behind the candidates, which cannot be if they are the whole
/// row.
std::optional<sampling_cut> find_sampling_cut(const sampling_candidates& candidates,
                                              std::uint32_t top_k, float top_p,
                                              sampling_histogram& histogram,
                                              std::uint32_t* order) noexcept;

} // namespace rollcast::kernels
