#pragma once

// One warp's part of attention: 16 query rows against tiles of 64 keys, in groups of 16. Pieces of
// attention.cu. An element i of a 16 x 8 fragment belongs to the lane's row i / 2 of two.

#include "kernels/attention.hpp"
#include "kernels/cuda/numerics.cuh"
#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

/// The keys and values of one sequence and kv head.
struct key_source {
  const std::byte* data;
  const std::uint32_t* blocks;
  std::size_t block_tokens;
  std::size_t kv_heads;
  std::size_t kv_head;
  std::size_t end; ///< Positions that exist: those behind may hold anything.
};

/// Two stages of one tile each: K as [group][d][16 keys], V as [64 keys][d], chunks of 16 bytes
/// exchanged so that the eight rows of an ldmatrix fall on different banks.
template <int HeadDim>
struct key_tiles {
  static constexpr unsigned group_keys = kv_group;
  static constexpr int groups = key_tile / kv_group;
  static constexpr int group_bytes = kv_group * HeadDim * 2; ///< Of K, and of V.
  static constexpr int k_bytes = groups * group_bytes;
  static constexpr int stage_bytes = 2 * k_bytes;
  static constexpr std::size_t shared_bytes = 2 * std::size_t{stage_bytes};

  const unsigned char* k;
  const unsigned char* v;

  ROLLCAST_DEVICE static key_tiles at(unsigned stage) {
    const unsigned char* const k = simt::shared_memory() + stage * stage_bytes;
    return {k, k + k_bytes};
  }

  /// Keys 0 .. 7 (`half` 0) or 8 .. 15 of a group, at element `d`.
  ROLLCAST_DEVICE static unsigned k_chunk(unsigned group, unsigned d, unsigned half) {
    return group * group_bytes + d * 32 + ((half ^ (d / 4 & 1u)) * 16);
  }
  /// Elements 8 * chunk .. of the value of key `key`.
  ROLLCAST_DEVICE static unsigned v_chunk(unsigned key, unsigned chunk) {
    return key * (HeadDim * 2) + ((chunk ^ (key & 7u)) * 16);
  }

  /// Begins to copy tile `tile` to a stage. Values that do not exist become zeros.
  ROLLCAST_DEVICE static void fetch(const key_source& keys, std::size_t tile, unsigned stage) {
    constexpr unsigned chunks = group_bytes / 16; // of K, and of V, in a group
    unsigned char* const to = simt::shared_memory() + stage * stage_bytes;
    for (unsigned group = 0; group < groups; ++group) {
      const std::size_t first = tile * key_tile + group * kv_group;
      const bool exists = first < keys.end;
      const std::size_t position = exists ? first : 0;
      const std::size_t slot = position % keys.block_tokens;
      const std::size_t physical =
        keys.blocks[position / keys.block_tokens] * (keys.block_tokens / kv_group)
        + slot / kv_group;
      const std::byte* const from =
        keys.data + (physical * keys.kv_heads + keys.kv_head) * 2 * group_bytes;
      for (unsigned i = simt::thread_x(); i < 2 * chunks; i += simt::block_threads()) {
        const unsigned at = i % chunks;
        const unsigned key = group * group_keys + at / (HeadDim / 8);
        const bool is_k = i < chunks;
        unsigned char* const place = is_k ? to + k_chunk(group, at / 2, at % 2)
                                          : to + k_bytes + v_chunk(key, at % (HeadDim / 8));
        const bool valid = exists && (is_k || tile * key_tile + key < keys.end);
        simt::copy_async_16(place, from + i * 16, valid);
      }
    }
  }
};

/// Fragments of 16 query rows: lane `t` holds rows t / 4 and t / 4 + 8.
template <int HeadDim>
struct query_rows {
  std::uint32_t a[HeadDim / 16][4];
  std::size_t last_key[2]; ///< Position of each of the two rows.

  /// Takes one of the lane's two rows; null is a row of zeros.
  ROLLCAST_DEVICE void load(unsigned half, const std::uint16_t* row) {
    const auto* const pairs = reinterpret_cast<const std::uint32_t*>(row);
#pragma unroll
    for (int step = 0; step < HeadDim / 16; ++step) {
      const unsigned at = static_cast<unsigned>(step) * 8 + simt::lane() % 4;
      const std::uint32_t low = row != nullptr ? pairs[at] : 0u;
      const std::uint32_t high = row != nullptr ? pairs[at + 4] : 0u;
      if (half == 0) {
        a[step][0] = low;
        a[step][2] = high;
      } else {
        a[step][1] = low;
        a[step][3] = high;
      }
    }
  }
};

/// How two parts of a softmax come together.
struct merge_scale {
  float m, a, b;

  /// @returns false if the second part has no key, and changes nothing.
  ROLLCAST_DEVICE bool begin(float first, float second) {
    if (second == minus_infinity)
      return false;
    m = first > second ? first : second;
    a = exp_f32(first - m);
    b = exp_f32(second - m);
    return true;
  }
  ROLLCAST_DEVICE float merge(float first, float second) const {
    return simt::fused(first, a, second * b);
  }
};

/// Scores, and then weights, of 16 keys: two fragments of eight columns.
struct group_scores {
  float s[2][4];

  /// s = q * k, the chain over d ascending from +0.
  template <int HeadDim>
  ROLLCAST_DEVICE void multiply(const query_rows<HeadDim>& query, const key_tiles<HeadDim>& tile,
                                unsigned group) {
    const unsigned lane = simt::lane();
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[0][i] = s[1][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < HeadDim / 16; ++step) {
      const unsigned d = static_cast<unsigned>(step) * 16 + lane / 8 % 2 * 8 + lane % 8;
      std::uint32_t b[4];
      simt::load_matrix_x4_trans(b, tile.k + key_tiles<HeadDim>::k_chunk(group, d, lane / 16));
      const std::uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      simt::mma_bf16(s[0], query.a[step], low);
      simt::mma_bf16(s[1], query.a[step], high);
    }
  }

  /// Scales, hides keys behind the row's position, and raises the rows' maxima. `first` is the
  /// position of the group's first key.
  template <int HeadDim>
  ROLLCAST_DEVICE void mask(const query_rows<HeadDim>& query, std::size_t first, float scale,
                            float (&top)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::size_t key = first + static_cast<unsigned>(j * 8 + i % 2) + simt::lane() % 4 * 2;
        // Behind the row's own position anything may lie: it is replaced, not multiplied.
        s[j][i] = key <= query.last_key[i / 2] ? s[j][i] * scale : minus_infinity;
        top[i / 2] = s[j][i] > top[i / 2] ? s[j][i] : top[i / 2];
      }
  }

  /// Weights, rounded, as the left matrix of the product with the values: a score's place in the
  /// one fragment is its place in the other.
  ROLLCAST_DEVICE void make_weights(const float (&shift)[2], std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&pair)[4] = s[i / 2];
      const int at = i % 2 * 2;
      a[i] =
        simt::to_bf16x2(exp_f32(pair[at] - shift[i % 2]), exp_f32(pair[at + 1] - shift[i % 2]));
    }
  }
};

/// Maxima of both rows over the four lanes that share them.
ROLLCAST_DEVICE void share_maxima(float (&top)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (unsigned mask = 1; mask <= 2; mask *= 2) {
      const float other = simt::shuffle_xor(top[half], mask);
      top[half] = other > top[half] ? other : top[half];
    }
}

/// Running maximum, sum and weighted values of 16 rows, of `Columns` columns of the values. The sum
/// is one more column of the product: of ones.
template <int Columns>
struct softmax_rows {
  float m[2];
  float l[4];
  float o[Columns / 8][4];

  ROLLCAST_DEVICE void clear() {
    m[0] = m[1] = minus_infinity;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      l[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < Columns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        o[j][i] = 0.0f;
  }

  ROLLCAST_DEVICE void merge(const softmax_rows& split) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      merge_scale scale;
      if (!scale.begin(m[half], split.m[half]))
        continue;
      m[half] = scale.m;
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        l[i] = scale.merge(l[i], split.l[i]);
#pragma unroll
        for (int j = 0; j < Columns / 8; ++j)
          o[j][i] = scale.merge(o[j][i], split.o[j][i]);
      }
    }
  }

  /// Takes the maxima of one more tile, and scales what came before.
  /// @param shift gets what to subtract from the tile's scores.
  ROLLCAST_DEVICE void raise(const float (&top)[2], float (&shift)[2]) {
    float alpha[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // A row that has seen no key yet of this split has no maximum to subtract.
      shift[half] = top[half] == minus_infinity ? 0.0f : top[half];
      alpha[half] = exp_f32(m[half] - shift[half]);
      m[half] = top[half];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      l[i] = l[i] * alpha[i / 2];
#pragma unroll
      for (int j = 0; j < Columns / 8; ++j)
        o[j][i] = o[j][i] * alpha[i / 2];
    }
  }

  /// Adds the values of one group, times their weights; the columns begin at `first`.
  template <int HeadDim>
  ROLLCAST_DEVICE void add_values(const key_tiles<HeadDim>& tile, unsigned group,
                                  const std::uint32_t (&a)[4], unsigned first) {
    constexpr std::uint32_t ones[2] = {0x3f803f80u, 0x3f803f80u};
    const unsigned lane = simt::lane();
    simt::mma_bf16(l, a, ones);
    const unsigned key = group * key_tiles<HeadDim>::group_keys + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < Columns / 8; j += 2) {
      std::uint32_t b[4];
      simt::load_matrix_x4_trans(
        b, tile.v
             + key_tiles<HeadDim>::v_chunk(key, first / 8 + static_cast<unsigned>(j) + lane / 16));
      const std::uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      simt::mma_bf16(o[j], a, low);
      simt::mma_bf16(o[j + 1], a, high);
    }
  }
};

// -- one tile, in two ways ----------------------------------------------------

inline constexpr unsigned attention_warps = 4;

/// Every warp has 16 rows of its own, and all keys and columns.
template <int HeadDim>
struct rows_apart {
  static constexpr int columns = HeadDim;
  static constexpr std::size_t shared_bytes = 0;

  ROLLCAST_DEVICE static unsigned first_row() { return simt::warp() * 16; }
  ROLLCAST_DEVICE static unsigned first_column() { return 0; }

  ROLLCAST_DEVICE static void add_tile(softmax_rows<columns>& rows,
                                       const query_rows<HeadDim>& query, std::size_t first,
                                       float scale, const key_tiles<HeadDim>& tile) {
    group_scores scores[key_tiles<HeadDim>::groups];
    float top[2] = {rows.m[0], rows.m[1]}, shift[2];
#pragma unroll
    for (unsigned group = 0; group < key_tiles<HeadDim>::groups; ++group) {
      scores[group].multiply(query, tile, group);
      scores[group].mask(query, first + group * kv_group, scale, top);
    }
    share_maxima(top);
    rows.raise(top, shift);
#pragma unroll
    for (unsigned group = 0; group < key_tiles<HeadDim>::groups; ++group) {
      std::uint32_t a[4];
      scores[group].make_weights(shift, a);
      rows.add_values(tile, group, a, 0);
    }
  }
};

/// All four warps have the same 16 rows: each the scores of one group of keys, then a quarter of
/// the columns. For decode, whose rows are few; the chain of every element is that of `rows_apart`.
template <int HeadDim>
struct rows_together {
  static_assert(key_tiles<HeadDim>::groups == attention_warps);
  static constexpr int columns = HeadDim / attention_warps;
  /// Maxima of each warp's 16 rows, and weights as each lane has them.
  static constexpr std::size_t maxima_bytes = attention_warps * 16 * sizeof(float);
  static constexpr std::size_t shared_bytes = maxima_bytes + attention_warps * 32 * 16;

  ROLLCAST_DEVICE static unsigned first_row() { return 0; }
  ROLLCAST_DEVICE static unsigned first_column() { return simt::warp() * columns; }

  ROLLCAST_DEVICE static void add_tile(softmax_rows<columns>& rows,
                                       const query_rows<HeadDim>& query, std::size_t first,
                                       float scale, const key_tiles<HeadDim>& tile) {
    unsigned char* const shared = simt::shared_memory() + key_tiles<HeadDim>::shared_bytes;
    auto* const maxima = reinterpret_cast<float*>(shared);
    unsigned char* const weights = shared + maxima_bytes;
    const unsigned warp = simt::warp(), lane = simt::lane();
    group_scores scores;
    float top[2] = {rows.m[0], rows.m[1]}, shift[2];
    scores.multiply(query, tile, warp);
    scores.mask(query, first + warp * kv_group, scale, top);
    share_maxima(top);
    if (lane % 4 == 0) {
      maxima[warp * 16 + lane / 4] = top[0];
      maxima[warp * 16 + lane / 4 + 8] = top[1];
    }
    simt::sync_block();
#pragma unroll
    for (unsigned other = 0; other < attention_warps; ++other)
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const float maximum = maxima[other * 16 + lane / 4 + 8 * half];
        top[half] = maximum > top[half] ? maximum : top[half];
      }
    rows.raise(top, shift);
    std::uint32_t a[4];
    scores.make_weights(shift, a);
    simt::store_16(weights + (warp * 32 + lane) * 16, {{a[0], a[1], a[2], a[3]}});
    simt::sync_block();
#pragma unroll
    for (unsigned group = 0; group < key_tiles<HeadDim>::groups; ++group) {
      const simt::vector_16 all = simt::load_16(weights + (group * 32 + lane) * 16);
      const std::uint32_t from[4] = {all.word[0], all.word[1], all.word[2], all.word[3]};
      rows.add_values(tile, group, from, first_column());
    }
  }
};

} // namespace rollcast::kernels::cuda
