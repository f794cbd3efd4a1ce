#pragma once

// One warp's part of attention: 16 query rows against tiles of 64 keys. Pieces of attention.cu.

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

/// Running maximum, sum and weighted values of 16 rows. Element i of a fragment belongs to the
/// lane's row i / 2. The sum is a column of the matrix product with ones.
template <int HeadDim>
struct softmax_rows {
  float m[2];
  float l[4];
  float o[HeadDim / 8][4];

  ROLLCAST_DEVICE void clear() {
    m[0] = m[1] = minus_infinity;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      l[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < HeadDim / 8; ++j)
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
        for (int j = 0; j < HeadDim / 8; ++j)
          o[j][i] = scale.merge(o[j][i], split.o[j][i]);
      }
    }
  }

  /// One tile of keys, whose first has position `first`.
  ROLLCAST_DEVICE void add_tile(const query_rows<HeadDim>& query, std::size_t first, float scale,
                                const key_tiles<HeadDim>& tile) {
    float s[key_tile / 8][4];
    make_scores(query, tile, s);
    rescale(query, first, scale, s);
    add_values(tile, s);
  }

private:
  ROLLCAST_DEVICE static void make_scores(const query_rows<HeadDim>& query,
                                          const key_tiles<HeadDim>& tile,
                                          float (&s)[key_tile / 8][4]) {
    const unsigned lane = simt::lane();
#pragma unroll
    for (int group = 0; group < key_tiles<HeadDim>::groups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[2 * group][i] = s[2 * group + 1][i] = 0.0f;
#pragma unroll
      for (int step = 0; step < HeadDim / 16; ++step) {
        const unsigned d = static_cast<unsigned>(step) * 16 + lane / 8 % 2 * 8 + lane % 8;
        std::uint32_t b[4];
        simt::load_matrix_x4_trans(
          b, tile.k + key_tiles<HeadDim>::k_chunk(static_cast<unsigned>(group), d, lane / 16));
        const std::uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        simt::mma_bf16(s[2 * group], query.a[step], low);
        simt::mma_bf16(s[2 * group + 1], query.a[step], high);
      }
    }
  }

  /// Turns scores into weights, and scales what came before.
  ROLLCAST_DEVICE void rescale(const query_rows<HeadDim>& query, std::size_t first, float scale,
                               float (&s)[key_tile / 8][4]) {
    float top[2] = {m[0], m[1]};
#pragma unroll
    for (int j = 0; j < static_cast<int>(key_tile / 8); ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::size_t key = first + static_cast<unsigned>(j * 8 + i % 2) + simt::lane() % 4 * 2;
        // Behind the row's own position anything may lie: it is replaced, not multiplied.
        s[j][i] = key <= query.last_key[i / 2] ? s[j][i] * scale : minus_infinity;
        top[i / 2] = s[j][i] > top[i / 2] ? s[j][i] : top[i / 2];
      }
    float alpha[2], shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (unsigned mask = 1; mask <= 2; mask *= 2) {
        const float other = simt::shuffle_xor(top[half], mask);
        top[half] = other > top[half] ? other : top[half];
      }
      // A row that has seen no key yet of this split has no maximum to subtract.
      shift[half] = top[half] == minus_infinity ? 0.0f : top[half];
      alpha[half] = exp_f32(m[half] - shift[half]);
      m[half] = top[half];
    }
#pragma unroll
    for (int j = 0; j < static_cast<int>(key_tile / 8); ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[j][i] = exp_f32(s[j][i] - shift[i / 2]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      l[i] = l[i] * alpha[i / 2];
#pragma unroll
      for (int j = 0; j < HeadDim / 8; ++j)
        o[j][i] = o[j][i] * alpha[i / 2];
    }
  }

  ROLLCAST_DEVICE void add_values(const key_tiles<HeadDim>& tile,
                                  const float (&p)[key_tile / 8][4]) {
    constexpr std::uint32_t ones[2] = {0x3f803f80u, 0x3f803f80u};
    const unsigned lane = simt::lane();
#pragma unroll
    for (int group = 0; group < key_tiles<HeadDim>::groups; ++group) {
      // The scores of 16 keys lie in registers as the left matrix of the next product wants them.
      const std::uint32_t a[4] = {simt::to_bf16x2(p[2 * group][0], p[2 * group][1]),
                                  simt::to_bf16x2(p[2 * group][2], p[2 * group][3]),
                                  simt::to_bf16x2(p[2 * group + 1][0], p[2 * group + 1][1]),
                                  simt::to_bf16x2(p[2 * group + 1][2], p[2 * group + 1][3])};
      simt::mma_bf16(l, a, ones);
      const unsigned key =
        static_cast<unsigned>(group) * key_tiles<HeadDim>::group_keys + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
      for (int j = 0; j < HeadDim / 8; j += 2) {
        std::uint32_t b[4];
        simt::load_matrix_x4_trans(
          b, tile.v + key_tiles<HeadDim>::v_chunk(key, static_cast<unsigned>(j) + lane / 16));
        const std::uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
        simt::mma_bf16(o[j], a, low);
        simt::mma_bf16(o[j + 1], a, high);
      }
    }
  }
};

} // namespace rollcast::kernels::cuda
