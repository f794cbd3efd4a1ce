#pragma once

// One block's view of a row of logits, and the block's reductions. Pieces of sampling.cu. Every sum
// is of integers and every choice is of a total order, so that no number of threads changes a bit.

#include "kernels/cuda/numerics.cuh"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

inline constexpr unsigned sample_threads = 512;

/// Shared memory of one row; the bits of banned tokens follow it.
struct sample_shared {
  std::uint64_t slots[sample_threads / 32];
  std::uint64_t mass[256];
  std::uint32_t count[256];
  std::uint64_t found[2];
};

ROLLCAST_DEVICE sample_shared& row_shared() {
  return *reinterpret_cast<sample_shared*>(simt::shared_memory());
}

/// Combines one value of each thread; all threads get the result. The operation must not care for
/// order.
template <class T, class Op>
ROLLCAST_DEVICE T reduce_block(T value, const Op& op) {
  static_assert(sizeof(T) <= 8);
#pragma unroll
  for (unsigned mask = 16; mask > 0; mask /= 2)
    value = op(value, simt::shuffle_xor(value, mask));
  auto* const slots = reinterpret_cast<T*>(row_shared().slots);
  simt::sync_block(); // What the slots held before has been read.
  if (simt::lane() == 0)
    slots[simt::warp()] = value;
  simt::sync_block();
  T result = slots[0];
  for (unsigned i = 1; i < sample_threads / 32; ++i)
    result = op(result, slots[i]);
  return result;
}

ROLLCAST_DEVICE float block_max(float x) {
  return reduce_block(x, [](float a, float b) { return a > b ? a : b; });
}
ROLLCAST_DEVICE std::uint32_t block_min(std::uint32_t x) {
  return reduce_block(x, [](std::uint32_t a, std::uint32_t b) { return a < b ? a : b; });
}
ROLLCAST_DEVICE std::uint64_t block_sum(std::uint64_t x) {
  return reduce_block(x, [](std::uint64_t a, std::uint64_t b) { return a + b; });
}

/// A row of logits at a temperature, without its banned tokens where `banned` is given.
struct logit_row {
  const float* logits;
  std::uint32_t vocabulary;
  float temperature;
  const std::uint32_t* banned; ///< One bit a token, or null.

  /// z = logit / temperature, NaN made -inf and +inf the largest finite number.
  ROLLCAST_DEVICE float z_with_banned(std::uint32_t token) const {
    const float z = logits[token] / temperature;
    if (!(z == z))
      return minus_infinity;
    return z < largest_float ? z : largest_float;
  }
  ROLLCAST_DEVICE bool is_banned(std::uint32_t token) const {
    return banned != nullptr && (banned[token / 32] >> token % 32 & 1u) != 0;
  }
  ROLLCAST_DEVICE float z(std::uint32_t token) const {
    return is_banned(token) ? minus_infinity : z_with_banned(token);
  }
};

/// Place of a token in the order (z descending, id ascending).
ROLLCAST_DEVICE std::uint64_t rank_key(float z, std::uint32_t token) {
  const std::uint32_t b = simt::bits(z + 0.0f); // -0 counts as the +0 it equals.
  const std::uint32_t ascending = (b & 0x80000000u) != 0 ? ~b : b | 0x80000000u;
  return std::uint64_t{~ascending} << 32 | token;
}

/// (z - z_max) - log(sum of exp(z - z_max)): twin of `logprob_of` in kernels/cpu/sampling.cpp.
ROLLCAST_DEVICE float logprob_of(float z, float z_max, std::uint64_t mass) {
  if (z == minus_infinity)
    return minus_infinity;
  const double shifted = static_cast<double>(z) - static_cast<double>(z_max);
  const double log_sum = log_f64(static_cast<double>(mass) * fixed_weight_unit);
  return static_cast<float>(shifted - log_sum) + 0.0f;
}

/// What a filter has found: the key of the last token that it keeps.
struct row_cut {
  std::uint64_t key;
  std::uint64_t mass; ///< Of all tokens up to and with it.
};

/// Which token ends a filter: the `count`-th, or the first with which the weights reach `mass`.
struct cut_target {
  std::uint32_t count; ///< 0 if it is the mass that counts.
  double mass;

  ROLLCAST_DEVICE bool behind(std::uint64_t count_to, std::uint64_t mass_to,
                              std::uint32_t here) const {
    if (count != 0)
      return count_to < count;
    return here == 0 || static_cast<double>(mass_to) < mass;
  }
};

/// Finds the cut among the tokens with z of at least `floor`, by radix selection over the order's
/// keys, eight bits a pass. @pre the cut is there.
ROLLCAST_DEVICE row_cut select_cut(const logit_row& row, float top, float floor,
                                   const cut_target& target) {
  sample_shared& shared = row_shared();
  std::uint64_t prefix = 0, count_before = 0, mass_before = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (unsigned i = simt::thread_x(); i < 256; i += sample_threads)
      shared.count[i] = 0, shared.mass[i] = 0;
    simt::sync_block();
    for (std::uint32_t t = simt::thread_x(); t < row.vocabulary; t += sample_threads) {
      const float z = row.z(t);
      if (z == minus_infinity || z < floor)
        continue;
      const std::uint64_t key = rank_key(z, t);
      if (shift < 56 && (key ^ prefix) >> (shift + 8) != 0)
        continue;
      const auto digit = static_cast<unsigned>(key >> shift & 255u);
      simt::atomic_add(shared.count + digit, 1u);
      simt::atomic_add(shared.mass + digit, fixed_weight(exp_f32(z - top)));
    }
    simt::sync_block();
    // Every thread walks the histogram alike: no result has to be handed out.
    unsigned digit = 0;
    while (digit < 255
           && target.behind(count_before + shared.count[digit], mass_before + shared.mass[digit],
                            shared.count[digit])) {
      count_before += shared.count[digit];
      mass_before += shared.mass[digit];
      ++digit;
    }
    prefix |= std::uint64_t{digit} << shift;
    const std::uint64_t here = shared.mass[digit];
    const bool single = shared.count[digit] == 1;
    simt::sync_block(); // All have read the histogram.
    if (shift == 0)
      return {prefix, mass_before + here};
    if (!single)
      continue;
    // One token is left: a last pass fetches the rest of its key.
    for (std::uint32_t t = simt::thread_x(); t < row.vocabulary; t += sample_threads) {
      const float z = row.z(t);
      const std::uint64_t key = rank_key(z, t);
      if (z != minus_infinity && z >= floor && (key ^ prefix) >> shift == 0)
        shared.found[0] = key;
    }
    simt::sync_block();
    const std::uint64_t key = shared.found[0];
    simt::sync_block();
    return {key, mass_before + here};
  }
  return {prefix, mass_before};
}

} // namespace rollcast::kernels::cuda
