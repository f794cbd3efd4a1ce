// The attention kernel. Included once per instruction set.
//
// Three nested blocks, none of which can change a bit, because the chain of every score (over d)
// and of every output element (over keys) is kept whole:
//   pass   up to `pass_rows` query rows (positions x heads of one kv head) walk the keys together;
//   tile   64 keys at an absolute position: scores, softmax and values of all rows of the pass;
//   block  up to `block_rows` rows share each K and V register.

#if defined(ROLLCAST_ATTENTION_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ROLLCAST_ATTENTION_INL
#undef ROLLCAST_ATTENTION_INL
#else
#define ROLLCAST_ATTENTION_INL
#endif

#include "kernels/attention.hpp"
#include "kernels/cpu/numerics-inl.hpp"

#include <hwy/cache_control.h>

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

/// Rows that share a register of K or V: 6 rows x 4 vectors fill AVX-512's and NEON's registers,
/// 6 rows x 2 vectors AVX2's. EMU128 never runs, so it is spared the other sizes.
inline constexpr std::size_t block_rows = HWY_TARGET == HWY_EMU128 ? 1 : 6;
/// Vectors of keys, or of the head dimension, in flight for each row of a block.
inline constexpr std::size_t block_vectors = HWY_TARGET == HWY_AVX2 ? 2 : 4;
inline constexpr std::size_t pass_rows = 96;
inline constexpr std::size_t tile_groups = key_tile / kv_group;
inline constexpr std::size_t group_vectors = kv_group / lanes;
inline constexpr std::size_t tile_vectors = key_tile / lanes;

HWY_INLINE f32_vec load_kv(const float* p) {
  return hn::LoadU(f32, p);
}

HWY_INLINE f32_vec load_kv(const std::uint16_t* p) {
  const hn::Rebind<std::uint16_t, f32_tag> u16;
  const hn::RebindToUnsigned<f32_tag> u32;
  return hn::BitCast(f32, hn::ShiftLeft<16>(hn::PromoteTo(u32, hn::LoadU(u16, p))));
}

/// 64 keys of one kv head. Groups past the last that is needed repeat the first one: they may not
/// exist, and their scores are masked.
template <class T>
struct key_value_tile {
  const T* k[tile_groups];
  const T* v[tile_groups];
};

/// The rows of a pass. Row `r` is head `first_head + r % group` at position `position + r / group`.
struct row_block {
  const float* q[block_rows];
  float* out[block_rows];
  std::size_t keys[block_rows]; ///< Keys of this tile that the row sees, at least 1; ascending.
  float* max;                   ///< Running maximum of each row.
  float* sum;                   ///< Running sum of each row.
};

/// scores[r][j] = scale * sum_d q[r][d] * k[d][j], the chain over d ascending from +0.
template <std::size_t R, class T>
HWY_INLINE void tile_scores(const row_block& rows, const key_value_tile<T>& tile,
                            const key_value_tile<T>& next, std::size_t head_dim, float scale,
                            float (*scores)[key_tile]) {
  constexpr std::size_t vectors = HWY_MAX(block_vectors, group_vectors);
  constexpr std::size_t groups = vectors / group_vectors;
  for (std::size_t g = 0; g < tile_groups; g += groups) {
    f32_vec acc[R][vectors];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (std::size_t i = 0; i < vectors; ++i)
        acc[r][i] = hn::Zero(f32);
    for (std::size_t d = 0; d < head_dim; ++d) {
      f32_vec k[vectors];
#pragma GCC unroll 4
      for (std::size_t i = 0; i < vectors; ++i) {
        k[i] = load_kv(tile.k[g + i / group_vectors] + d * kv_group + i % group_vectors * lanes);
        if (i % group_vectors == 0)
          hwy::Prefetch(next.k[g + i / group_vectors] + d * kv_group);
      }
#pragma GCC unroll 8
      for (std::size_t r = 0; r < R; ++r) {
        const auto q = hn::Set(f32, rows.q[r][d]);
#pragma GCC unroll 4
        for (std::size_t i = 0; i < vectors; ++i)
          acc[r][i] = hn::MulAdd(q, k[i], acc[r][i]);
      }
    }
    const auto scales = hn::Set(f32, scale);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (std::size_t i = 0; i < vectors; ++i)
        hn::StoreU(hn::Mul(acc[r][i], scales), f32, &scores[r][g * kv_group + i * lanes]);
  }
}

/// One online-softmax update: turns scores into weights, and gives the factor of what came before.
template <std::size_t R>
HWY_INLINE void tile_softmax(const row_block& rows, float (*scores)[key_tile], float* alpha) {
  HWY_ALIGN float shift[16] = {};
  for (std::size_t r = 0; r < R; ++r) {
    f32_vec p[tile_vectors];
    // Lanes of keys that the row does not see, whatever they hold, become -inf.
    const auto keys = hn::Set(f32, static_cast<float>(rows.keys[r]));
#pragma GCC unroll 16
    for (std::size_t i = 0; i < tile_vectors; ++i) {
      const auto lane = hn::Add(hn::ConvertTo(f32, hn::Iota(hn::RebindToSigned<f32_tag>(), 0)),
                                hn::Set(f32, static_cast<float>(i * lanes)));
      p[i] = hn::IfThenElse(hn::Lt(lane, keys), hn::LoadU(f32, &scores[r][i * lanes]),
                            hn::Set(f32, -std::numeric_limits<float>::infinity()));
    }
    auto top = p[0];
#pragma GCC unroll 16
    for (std::size_t i = 1; i < tile_vectors; ++i)
      top = hn::Max(top, p[i]);
    const float before = rows.max[r];
    const float max = std::max(before, hn::GetLane(hn::MaxOfLanes(f32, top)));
    const auto maxes = hn::Set(f32, max);
#pragma GCC unroll 16
    for (std::size_t i = 0; i < tile_vectors; ++i) {
      p[i] = exp_f32_vec(hn::Sub(p[i], maxes));
      hn::StoreU(p[i], f32, &scores[r][i * lanes]);
    }
    rows.max[r] = max;
    shift[r] = before - max; // -inf for the first tile, so that alpha is +0.
    alpha[r] = fold_64(p);
  }
  HWY_ALIGN float factor[16];
  for (std::size_t i = 0; i < block_rows; i += lanes)
    hn::Store(exp_f32_vec(hn::Load(f32, shift + i)), f32, factor + i);
  for (std::size_t r = 0; r < R; ++r) {
    rows.sum[r] = hn::GetLane(
      hn::MulAdd(hn::Set(f32, rows.sum[r]), hn::Set(f32, factor[r]), hn::Set(f32, alpha[r])));
    alpha[r] = factor[r];
  }
}

/// out[r][d] = out[r][d] * alpha[r], then fma(p[r][j], v[j][d], .) for keys j from `begin` to
/// `end`, ascending, over `V` vectors of the head dimension at `d`.
template <std::size_t R, std::size_t V, class T>
HWY_INLINE void tile_values(float* const* out, const key_value_tile<T>& tile,
                            const key_value_tile<T>& next, std::size_t head_dim, std::size_t d,
                            const float (*p)[key_tile], const float* alpha, std::size_t begin,
                            std::size_t end) {
  f32_vec acc[R][V];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < R; ++r) {
    const auto factor = hn::Set(f32, alpha[r]);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < V; ++i)
      acc[r][i] = hn::Mul(hn::LoadU(f32, out[r] + d + i * lanes), factor);
  }
  for (std::size_t j = begin; j < end; ++j) {
    const std::size_t at = j % kv_group * head_dim + d;
    const T* row = tile.v[j / kv_group] + at;
    const T* ahead = next.v[j / kv_group] + at;
    f32_vec v[V];
#pragma GCC unroll 4
    for (std::size_t i = 0; i < V; ++i) {
      v[i] = load_kv(row + i * lanes);
      hwy::Prefetch(ahead + i * lanes);
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < R; ++r) {
      const auto weight = hn::Set(f32, p[r][j]);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < V; ++i)
        acc[r][i] = hn::MulAdd(weight, v[i], acc[r][i]);
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < V; ++i)
      hn::StoreU(acc[r][i], f32, out[r] + d + i * lanes);
}

template <std::size_t R, class T>
HWY_INLINE void tile_values(float* const* out, const key_value_tile<T>& tile,
                            const key_value_tile<T>& next, std::size_t head_dim,
                            const float (*p)[key_tile], const float* alpha, std::size_t begin,
                            std::size_t end) {
  std::size_t d = 0;
  for (; d + block_vectors * lanes <= head_dim; d += block_vectors * lanes)
    tile_values<R, block_vectors>(out, tile, next, head_dim, d, p, alpha, begin, end);
  for (; d < head_dim; d += lanes)
    tile_values<R, 1>(out, tile, next, head_dim, d, p, alpha, begin, end);
}

/// One tile for one block of R rows.
template <std::size_t R, class T>
HWY_NOINLINE void tile_block(const row_block& rows, const key_value_tile<T>& tile,
                             const key_value_tile<T>& next, std::size_t head_dim, float scale) {
  HWY_ALIGN float p[R][key_tile];
  HWY_ALIGN float alpha[R];
  tile_scores<R>(rows, tile, next, head_dim, scale, p);
  tile_softmax<R>(rows, p, alpha);
  // Keys that every row sees go together; the ragged edge of the diagonal goes row by row, so that
  // no row ever touches a value past its own position.
  const std::size_t common = rows.keys[0];
  tile_values<R>(rows.out, tile, next, head_dim, p, alpha, 0, common);
  const float one = 1.0f;
  for (std::size_t r = 1; r < R; ++r)
    if (rows.keys[r] > common)
      tile_values<1>(&rows.out[r], tile, tile, head_dim, &p[r], &one, common, rows.keys[r]);
}

/// Calls `tile_block` for `count` rows, R at most.
template <std::size_t R, class T>
HWY_INLINE void run_block(std::size_t count, const row_block& rows, const key_value_tile<T>& tile,
                          const key_value_tile<T>& next, std::size_t head_dim, float scale) {
  if constexpr (R > 1) {
    if (count < R)
      return run_block<R - 1>(count, rows, tile, next, head_dim, scale);
  }
  tile_block<R>(rows, tile, next, head_dim, scale);
}

/// Looks up the tile that begins at position `first`; `keys` of it, at least 1, are in the cache.
template <class T>
HWY_INLINE key_value_tile<T> find_tile(const kv_layout& kv, const std::uint32_t* blocks,
                                       std::size_t kv_head, std::size_t first, std::size_t keys) {
  key_value_tile<T> tile;
  for (std::size_t g = 0; g < tile_groups; ++g) {
    const std::size_t position = g * kv_group < keys ? first + g * kv_group : first;
    const std::byte* data =
      kv.data
      + kv.k_offset(blocks[position / kv.block_tokens], position % kv.block_tokens, kv_head);
    tile.k[g] = reinterpret_cast<const T*>(data);
    tile.v[g] = reinterpret_cast<const T*>(data + kv.tile_bytes());
  }
  return tile;
}

/// Rows [begin, begin + count) of the item's positions x heads, over all their keys.
template <class T>
HWY_INLINE void attention_pass(const attention_args& args, const attention_item& item,
                               std::size_t begin, std::size_t count) {
  const attention_sequence& sequence = args.sequences[item.sequence];
  const std::size_t head_dim = args.kv.head_dim, group = args.heads / args.kv.kv_heads;
  const std::size_t row0 = sequence.row_begin + item.row_begin;
  const std::size_t position0 = sequence.position + item.row_begin;
  const auto position = [&](std::size_t r) { return position0 + (begin + r) / group; };
  const auto column = [&](std::size_t r) {
    return (item.kv_head * group + (begin + r) % group) * head_dim;
  };
  const auto out = [&](std::size_t r) {
    return args.out + (row0 + (begin + r) / group) * args.out_stride + column(r);
  };
  float max[pass_rows], sum[pass_rows];
  for (std::size_t r = 0; r < count; ++r) {
    max[r] = -std::numeric_limits<float>::infinity();
    sum[r] = 0.0f;
    std::fill_n(out(r), head_dim, 0.0f);
  }
  const std::size_t blocks = (count + block_rows - 1) / block_rows;
  const std::size_t keys = position(count - 1) + 1;
  auto tile = find_tile<T>(args.kv, sequence.blocks, item.kv_head, 0, keys);
  for (std::size_t first = 0; first < keys; first += key_tile) {
    const std::size_t ahead = first + key_tile;
    const auto next = ahead < keys
                        ? find_tile<T>(args.kv, sequence.blocks, item.kv_head, ahead, keys - ahead)
                        : tile;
    for (std::size_t b = 0; b < blocks; ++b) {
      std::size_t r = b * count / blocks;
      const std::size_t end = (b + 1) * count / blocks;
      while (r < end && position(r) < first)
        ++r; // These rows ended in an earlier tile.
      if (r == end)
        continue;
      row_block rows;
      rows.max = max + r;
      rows.sum = sum + r;
      for (std::size_t i = 0; r + i < end; ++i) {
        rows.q[i] = args.q + (row0 + (begin + r + i) / group) * args.q_stride + column(r + i);
        rows.out[i] = out(r + i);
        rows.keys[i] = std::min(key_tile, position(r + i) + 1 - first);
      }
      run_block<block_rows>(end - r, rows, tile, b == 0 ? next : tile, head_dim, args.scale);
    }
    tile = next;
  }
  for (std::size_t r = 0; r < count; ++r) {
    const auto divisor = hn::Set(f32, sum[r]);
    float* y = out(r);
    for (std::size_t d = 0; d < head_dim; d += lanes)
      hn::StoreU(hn::Div(hn::LoadU(f32, y + d), divisor), f32, y + d);
  }
}

void attention_item_rows(const attention_args& args, const attention_item& item) {
  const std::size_t rows = item.rows * (args.heads / args.kv.kv_heads);
  const std::size_t passes = (rows + pass_rows - 1) / pass_rows;
  for (std::size_t i = 0; i < passes; ++i) {
    const std::size_t begin = i * rows / passes, end = (i + 1) * rows / passes;
    if (args.kv.type == dtype::f32)
      attention_pass<float>(args, item, begin, end - begin);
    else
      attention_pass<std::uint16_t>(args, item, begin, end - begin);
  }
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
