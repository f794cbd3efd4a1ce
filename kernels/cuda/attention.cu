#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/kv.hpp"
#include "kernels/cuda/launch.cuh"

#include <algorithm>

namespace rollcast::kernels::cuda {
namespace {

constexpr unsigned attention_threads = attention_warps * 32;
/// Blocks that share the items, over all kv heads: a few for each multiprocessor, because a block
/// without an item costs its start too.
constexpr std::size_t blocks_max = 1024;

/// Where the rows of one item are, for one kv head.
struct item_rows {
  const attention_sequence* sequence;
  std::size_t first;    ///< Row of q and out of the item's first position.
  std::size_t position; ///< Its absolute position.
  unsigned group;       ///< Heads of the kv head.
  unsigned count;       ///< Positions times heads.
  std::size_t kv_head;
};

ROLLCAST_DEVICE std::size_t query_offset(const item_rows& rows, std::size_t stride,
                                         std::size_t head_dim, unsigned row) {
  return (rows.first + row / rows.group) * stride
         + (rows.kv_head * rows.group + row % rows.group) * head_dim;
}

/// Partial results of one (row, split, head): o[head_dim], m, l.
ROLLCAST_DEVICE float* partial_at(const attention_args& args, const attention_item& item,
                                  const item_rows& rows, unsigned split, unsigned row) {
  const std::size_t slot = item.partial + std::size_t{split} * item.rows + row / rows.group;
  const std::size_t head = rows.kv_head * rows.group + row % rows.group;
  return args.partials + (slot * args.heads + head) * (args.kv.head_dim + 2);
}

template <int HeadDim, class Way>
ROLLCAST_DEVICE void write_rows(const attention_args& args, const item_rows& rows,
                                const softmax_rows<Way::columns>& done) {
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = Way::first_row() + simt::lane() / 4 + 8 * half;
    if (row >= rows.count)
      continue;
    bf16_bits* const out = args.out + query_offset(rows, args.out_stride, HeadDim, row);
    const float l = done.l[2 * half];
#pragma unroll
    for (int j = 0; j < Way::columns / 8; ++j) {
      bf16_bits* const at = out + Way::first_column() + j * 8 + simt::lane() % 4 * 2;
      at[0] = simt::to_bf16(done.o[j][2 * half] / l);
      at[1] = simt::to_bf16(done.o[j][2 * half + 1] / l);
    }
  }
}

template <int HeadDim, class Way>
ROLLCAST_DEVICE void write_partials(const attention_args& args, const attention_item& item,
                                    const item_rows& rows, const softmax_rows<Way::columns>& done) {
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = Way::first_row() + simt::lane() / 4 + 8 * half;
    if (row >= rows.count)
      continue;
    float* const to = partial_at(args, item, rows, item.split_begin, row);
#pragma unroll
    for (int j = 0; j < Way::columns / 8; ++j) {
      float* const at = to + Way::first_column() + j * 8 + simt::lane() % 4 * 2;
      at[0] = done.o[j][2 * half];
      at[1] = done.o[j][2 * half + 1];
    }
    if (simt::lane() % 4 == 0 && Way::first_column() == 0) {
      to[HeadDim] = done.m[half];
      to[HeadDim + 1] = done.l[2 * half];
    }
  }
}

/// The last of the items of some rows merges their splits, ascending.
template <int HeadDim>
ROLLCAST_DEVICE void merge_partials(const attention_args& args, const attention_item& item,
                                    const item_rows& rows) {
  simt::fence();
  simt::sync_block();
  auto* const arrived = reinterpret_cast<std::uint32_t*>(simt::shared_memory());
  if (simt::thread_x() == 0) {
    std::uint32_t* const counter =
      args.counters + std::size_t{item.group} * args.kv.kv_heads + rows.kv_head;
    *arrived = simt::atomic_add(counter, 1u);
    if (*arrived + 1 == item.splits)
      *counter = 0; // Ready for the next layer.
  }
  simt::sync_block();
  if (*arrived + 1 != item.splits)
    return;
  simt::fence();
  for (unsigned at = simt::thread_x(); at < rows.count * HeadDim; at += attention_threads) {
    const unsigned row = at / HeadDim, d = at % HeadDim;
    float m = minus_infinity, l = 0.0f, o = 0.0f;
    for (unsigned split = 0; split < item.splits; ++split) {
      const float* const from = partial_at(args, item, rows, split, row);
      const float m_split = simt::load_fresh(from + HeadDim);
      merge_scale scale;
      if (!scale.begin(m, m_split))
        continue;
      l = scale.merge(l, simt::load_fresh(from + HeadDim + 1));
      o = scale.merge(o, simt::load_fresh(from + d));
      m = scale.m;
    }
    args.out[query_offset(rows, args.out_stride, HeadDim, row) + d] = simt::to_bf16(o / l);
  }
}

/// One item for one kv head. All warps share the tiles of K and V.
template <int HeadDim, class Way>
ROLLCAST_DEVICE void do_item(const attention_args& args, const attention_item& item,
                             const item_rows& rows) {
  const unsigned warp_row = Way::first_row();
  const bool works = warp_row < rows.count;
  const key_source keys{args.kv.data,     rows.sequence->blocks, args.kv.block_tokens,
                        args.kv.kv_heads, rows.kv_head,          rows.position + item.rows};
  query_rows<HeadDim> query;
#pragma unroll
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned row = warp_row + simt::lane() / 4 + 8 * half;
    query.load(half, row < rows.count ? args.q + query_offset(rows, args.q_stride, HeadDim, row)
                                      : nullptr);
    // A row that is not there sees the first key, so that its numbers are numbers.
    query.last_key[half] = rows.position + (row < rows.count ? row / rows.group : 0);
  }
  constexpr std::size_t split_tiles = attention_split / key_tile;
  const std::size_t begin = item.split_begin * split_tiles;
  const std::size_t all = (keys.end + key_tile - 1) / key_tile;
  const std::size_t end = item.split_end * split_tiles < all ? item.split_end * split_tiles : all;
  softmax_rows<Way::columns> split, total;
  split.clear();
  total.clear();
  key_tiles<HeadDim>::fetch(keys, begin, 0);
  simt::copy_async_commit();
  for (std::size_t tile = begin; tile < end; ++tile) {
    const auto stage = static_cast<unsigned>((tile - begin) % 2);
    if (tile + 1 < end)
      key_tiles<HeadDim>::fetch(keys, tile + 1, 1 - stage);
    simt::copy_async_commit();
    simt::copy_async_wait<1>();
    simt::sync_block();
    if (works)
      Way::add_tile(split, query, tile * key_tile, args.scale, key_tiles<HeadDim>::at(stage));
    simt::sync_block(); // All have done with the stage before it is filled again.
    if ((tile + 1) % split_tiles == 0 && tile + 1 < end) {
      total.merge(split);
      split.clear();
    }
  }
  if (item.splits == item.split_end - item.split_begin) {
    total.merge(split);
    if (works)
      write_rows<HeadDim, Way>(args, rows, total);
  } else {
    if (works)
      write_partials<HeadDim, Way>(args, item, rows, split);
    merge_partials<HeadDim>(args, item, rows);
  }
}

/// Grid: any number of blocks that share the items, kv heads.
template <int HeadDim>
ROLLCAST_KERNEL(attention_threads, 2)
attention_kernel(attention_args args) {
  const std::uint32_t count = *args.item_count;
  for (std::uint32_t i = simt::block_x(); i < count; i += simt::grid_x()) {
    const attention_item item = args.items[i];
    if (item.rows == 0)
      continue;
    const attention_sequence& sequence = args.sequences[item.sequence];
    const auto group = static_cast<unsigned>(args.heads / args.kv.kv_heads);
    const item_rows rows{&sequence,
                         std::size_t{sequence.row_begin} + item.row_begin,
                         std::size_t{sequence.position} + item.row_begin,
                         group,
                         item.rows * group,
                         simt::block_y()};
    if (rows.count <= 16)
      do_item<HeadDim, rows_together<HeadDim>>(args, item, rows);
    else
      do_item<HeadDim, rows_apart<HeadDim>>(args, item, rows);
    simt::sync_block();
  }
}

} // namespace

std::size_t attention_partial_bytes(std::size_t partial_rows, std::size_t heads,
                                    std::size_t head_dim) noexcept {
  return partial_rows * heads * (head_dim + 2) * sizeof(float);
}

device_status attend(const attention_args& args, stream_handle stream) {
  if (args.items_max == 0)
    return {};
  const auto& kv = args.kv;
  const bool fits = kv.kv_heads != 0 && args.heads % kv.kv_heads == 0
                    && args.heads / kv.kv_heads <= attention_tile_rows;
  if (!fits || (kv.head_dim != 64 && kv.head_dim != 128) || !has_plain_tiles(kv)
      || args.q_stride % 8 != 0 || kv.block_tokens % kv_group != 0)
    return refused("attention of " + std::to_string(args.heads) + " heads over "
                   + std::to_string(kv.kv_heads) + " kv heads of " + std::to_string(kv.head_dim)
                   + ": head_dim must be 64 or 128, in a bf16 cache, heads a multiple of kv heads, "
                     "64 times them at most");
  const auto blocks = static_cast<unsigned>(
    std::min(args.items_max, std::max<std::size_t>(1, blocks_max / kv.kv_heads)));
  const bool small = kv.head_dim == 64;
  const launch_shape shape{{blocks, static_cast<unsigned>(kv.kv_heads), 1},
                           attention_threads,
                           (small ? key_tiles<64>::shared_bytes : key_tiles<128>::shared_bytes)
                             + rows_together<64>::shared_bytes};
  static_assert(rows_together<64>::shared_bytes == rows_together<128>::shared_bytes);
  return launch("attention", small ? attention_kernel<64> : attention_kernel<128>, shape, args,
                stream);
}

} // namespace rollcast::kernels::cuda
