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

HWY_INLINE auto load_four(const float* p) {
  return hn::LoadU(hn::CappedTag<float, 4>(), p);
}

HWY_INLINE auto load_four(const std::uint16_t* p) {
  const hn::CappedTag<float, 4> d;
  const hn::Rebind<std::uint16_t, decltype(d)> u16;
  const hn::RebindToUnsigned<decltype(d)> u32;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(u32, hn::LoadU(u16, p))));
}

/// 64 keys of one kv head. Groups past the last that is needed repeat the first one: they may not
/// exist, and their scores are masked.
template <class K, class V = K>
struct key_value_tile {
  const K* k[tile_groups];
  const V* v[tile_groups];
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
template <std::size_t R, class Tile>
HWY_INLINE void tile_scores(const row_block& rows, const Tile& tile, const Tile& next,
                            std::size_t head_dim, float scale, float (*scores)[key_tile]) {
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
template <std::size_t R, std::size_t V, class Tile>
HWY_INLINE void tile_values(float* const* out, const Tile& tile, const Tile& next,
                            std::size_t value_dim, std::size_t d, const float (*p)[key_tile],
                            const float* alpha, std::size_t begin, std::size_t end) {
  f32_vec acc[R][V];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < R; ++r) {
    const auto factor = hn::Set(f32, alpha[r]);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < V; ++i)
      acc[r][i] = hn::Mul(hn::LoadU(f32, out[r] + d + i * lanes), factor);
  }
  for (std::size_t j = begin; j < end; ++j) {
    const std::size_t at = j % kv_group * value_dim + d;
    const auto* row = tile.v[j / kv_group] + at;
    const auto* ahead = next.v[j / kv_group] + at;
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

template <std::size_t R, class Tile>
HWY_INLINE void tile_values(float* const* out, const Tile& tile, const Tile& next,
                            std::size_t value_dim, const float (*p)[key_tile], const float* alpha,
                            std::size_t begin, std::size_t end) {
  std::size_t d = 0;
  for (; d + block_vectors * lanes <= value_dim; d += block_vectors * lanes)
    tile_values<R, block_vectors>(out, tile, next, value_dim, d, p, alpha, begin, end);
  for (; d < value_dim; d += lanes)
    tile_values<R, 1>(out, tile, next, value_dim, d, p, alpha, begin, end);
}

/// One tile for one block of R rows.
template <std::size_t R, class Tile>
HWY_NOINLINE void tile_block(const row_block& rows, const Tile& tile, const Tile& next,
                             std::size_t head_dim, std::size_t value_dim, float scale) {
  HWY_ALIGN float p[R][key_tile];
  HWY_ALIGN float alpha[R];
  tile_scores<R>(rows, tile, next, head_dim, scale, p);
  tile_softmax<R>(rows, p, alpha);
  // Keys that every row sees go together; the ragged edge of the diagonal goes row by row, so that
  // no row ever touches a value past its own position.
  const std::size_t common = rows.keys[0];
  tile_values<R>(rows.out, tile, next, value_dim, p, alpha, 0, common);
  const float one = 1.0f;
  for (std::size_t r = 1; r < R; ++r)
    if (rows.keys[r] > common)
      tile_values<1>(&rows.out[r], tile, tile, value_dim, &p[r], &one, common, rows.keys[r]);
}

/// Calls `tile_block` for `count` rows, R at most.
template <std::size_t R, class Tile>
HWY_INLINE void run_block(std::size_t count, const row_block& rows, const Tile& tile,
                          const Tile& next, std::size_t head_dim, std::size_t value_dim,
                          float scale) {
  if constexpr (R > 1) {
    if (count < R)
      return run_block<R - 1>(count, rows, tile, next, head_dim, value_dim, scale);
  }
  tile_block<R>(rows, tile, next, head_dim, value_dim, scale);
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

/// The keys of one group, turned into the rows that values are: out[lane][d] = k[d][lane].
template <class T>
HWY_INLINE void turn_group(const T* k, std::size_t dim, float* out) {
  const hn::CappedTag<float, 4> four;
  const hn::Repartition<std::uint64_t, decltype(four)> two;
  for (std::size_t d = 0; d < dim; d += 4)
    for (std::size_t lane = 0; lane < kv_group; lane += 4) {
      const T* from = k + d * kv_group + lane;
      const auto a = load_four(from), b = load_four(from + kv_group);
      const auto c = load_four(from + 2 * kv_group), e = load_four(from + 3 * kv_group);
      const auto ab_low = hn::BitCast(two, hn::InterleaveLower(four, a, b));
      const auto ab_high = hn::BitCast(two, hn::InterleaveUpper(four, a, b));
      const auto ce_low = hn::BitCast(two, hn::InterleaveLower(four, c, e));
      const auto ce_high = hn::BitCast(two, hn::InterleaveUpper(four, c, e));
      float* to = out + lane * dim + d;
      hn::StoreU(hn::BitCast(four, hn::InterleaveLower(two, ab_low, ce_low)), four, to);
      hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(two, ab_low, ce_low)), four, to + dim);
      hn::StoreU(hn::BitCast(four, hn::InterleaveLower(two, ab_high, ce_high)), four, to + 2 * dim);
      hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(two, ab_high, ce_high)), four, to + 3 * dim);
    }
}

/// Tiles of a cache that holds keys and values.
template <class T>
class plain_tiles {
public:
  using tile = key_value_tile<T>;
  const tile& with_values(const tile& found, std::size_t, std::size_t) { return found; }
  /// What is fetched while `now` is used.
  const tile& to_fetch(const tile&, const tile& next) { return next; }
};

/// Tiles of a cache whose values are part of the keys: turned once for all rows of a pass.
template <class T>
class latent_tiles {
public:
  using tile = key_value_tile<T, float>;
  const tile& with_values(const key_value_tile<T>& found, std::size_t keys, std::size_t dim) {
    for (std::size_t g = 0; g < tile_groups; ++g) {
      made_.k[g] = found.k[g];
      made_.v[g] = values_ + g * kv_group * dim;
      if (g * kv_group < keys)
        turn_group(found.k[g], dim, values_ + g * kv_group * dim);
    }
    return made_;
  }
  tile to_fetch(const tile& now, const key_value_tile<T>& next) {
    tile out = now; // its values are made when their turn comes
    std::copy(next.k, next.k + tile_groups, out.k);
    return out;
  }

private:
  tile made_;
  HWY_ALIGN float values_[key_tile * latent_dim_max];
};

/// Rows [begin, begin + count) of the item's positions x heads, over all their keys.
template <class T, class Tiles>
HWY_INLINE void attention_pass(const attention_args& args, const attention_item& item,
                               std::size_t begin, std::size_t count, Tiles& tiles) {
  const attention_sequence& sequence = args.sequences[item.sequence];
  const std::size_t head_dim = args.kv.head_dim, value_dim = args.kv.value_dim();
  const std::size_t group = args.heads / (args.kv.kv_heads * args.shares);
  const std::size_t kv_head = item.kv_head / args.shares;
  const std::size_t row0 = sequence.row_begin + item.row_begin;
  const std::size_t position0 = sequence.position + item.row_begin;
  const auto position = [&](std::size_t r) { return position0 + (begin + r) / group; };
  const auto head = [&](std::size_t r) { return item.kv_head * group + (begin + r) % group; };
  const auto out = [&](std::size_t r) {
    return args.out + (row0 + (begin + r) / group) * args.out_stride + head(r) * value_dim;
  };
  float max[pass_rows], sum[pass_rows];
  for (std::size_t r = 0; r < count; ++r) {
    max[r] = -std::numeric_limits<float>::infinity();
    sum[r] = 0.0f;
    std::fill_n(out(r), value_dim, 0.0f);
  }
  const std::size_t blocks = (count + block_rows - 1) / block_rows;
  const std::size_t keys = position(count - 1) + 1;
  auto found = find_tile<T>(args.kv, sequence.blocks, kv_head, 0, keys);
  for (std::size_t first = 0; first < keys; first += key_tile) {
    const std::size_t ahead = first + key_tile;
    const auto next =
      ahead < keys ? find_tile<T>(args.kv, sequence.blocks, kv_head, ahead, keys - ahead) : found;
    const auto& tile = tiles.with_values(found, keys - first, value_dim);
    const auto later = tiles.to_fetch(tile, next);
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
        rows.q[i] =
          args.q + (row0 + (begin + r + i) / group) * args.q_stride + head(r + i) * head_dim;
        rows.out[i] = out(r + i);
        rows.keys[i] = std::min(key_tile, position(r + i) + 1 - first);
      }
      run_block<block_rows>(end - r, rows, tile, b == 0 ? later : tile, head_dim, value_dim,
                            args.scale);
    }
    found = next;
  }
  for (std::size_t r = 0; r < count; ++r) {
    const auto divisor = hn::Set(f32, sum[r]);
    float* y = out(r);
    for (std::size_t d = 0; d < value_dim; d += lanes)
      hn::StoreU(hn::Div(hn::LoadU(f32, y + d), divisor), f32, y + d);
  }
}

template <class T, class Tiles>
HWY_NOINLINE void attention_passes(const attention_args& args, const attention_item& item) {
  Tiles tiles;
  const std::size_t rows = item.rows * (args.heads / (args.kv.kv_heads * args.shares));
  const std::size_t passes = (rows + pass_rows - 1) / pass_rows;
  for (std::size_t i = 0; i < passes; ++i) {
    const std::size_t begin = i * rows / passes, end = (i + 1) * rows / passes;
    attention_pass<T>(args, item, begin, end - begin, tiles);
  }
}

void attention_item_rows(const attention_args& args, const attention_item& item) {
  const bool latent = args.kv.latent_dim != 0;
  if (args.kv.type == dtype::f32)
    return latent ? attention_passes<float, latent_tiles<float>>(args, item)
                  : attention_passes<float, plain_tiles<float>>(args, item);
  return latent ? attention_passes<std::uint16_t, latent_tiles<std::uint16_t>>(args, item)
                : attention_passes<std::uint16_t, plain_tiles<std::uint16_t>>(args, item);
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
