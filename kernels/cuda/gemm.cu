#include "kernels/cuda/gemm.hpp"
#include "kernels/cuda/gemm_tile.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/numerics.cuh"

#include <algorithm>

namespace rollcast::kernels::cuda {
namespace {

/// A product as a kernel takes it.
struct gemm_work {
  gemm_args args;
  unsigned leaves;
  unsigned k_tiles;
  unsigned m_tiles;
  unsigned n_tiles;
  float* partials;
  std::uint32_t* counters;
};

/// First K tile of a leaf; leaf `leaves` begins at the end.
ROLLCAST_DEVICE std::size_t leaf_begin(const gemm_work& work, unsigned leaf) {
  return std::size_t{leaf} * work.k_tiles / work.leaves;
}

/// What follows the sum: bias, residual, silu, rounding, for columns `n` (even) and `n` + 1.
ROLLCAST_DEVICE void finish_pair(const gemm_args& args, std::size_t m, std::size_t n, float v0,
                                 float v1) {
  if (m >= args.rows || n >= args.n)
    return;
  const bool both = n + 1 < args.n;
  if (args.bias != nullptr) {
    v0 = v0 + args.bias[n];
    if (both)
      v1 = v1 + args.bias[n + 1];
  }
  if (args.residual != nullptr) {
    const float* const residual = args.residual + m * args.residual_stride + n;
    v0 = v0 + residual[0];
    if (both)
      v1 = v1 + residual[1];
  }
  if (args.epilogue == gemm_epilogue::silu_pairs) {
    const float gated = v0 / (1.0f + exp_f32(-v0)) * v1;
    const std::size_t at = m * args.y_stride + n / 2;
    if (args.output == gemm_output::f32)
      static_cast<float*>(args.y)[at] = gated;
    else
      static_cast<bf16_bits*>(args.y)[at] = simt::to_bf16(gated);
    return;
  }
  const std::size_t at = m * args.y_stride + n;
  if (args.output == gemm_output::f32) {
    auto* const y = static_cast<float*>(args.y) + at;
    y[0] = v0;
    if (both)
      y[1] = v1;
  } else {
    auto* const y = static_cast<bf16_bits*>(args.y) + at;
    y[0] = simt::to_bf16(v0);
    if (both)
      y[1] = simt::to_bf16(v1);
  }
}

template <class Tile>
ROLLCAST_DEVICE void finish(const gemm_args& args, const Tile& sums, std::size_t m, std::size_t n) {
  const unsigned row = simt::lane() / 4, column = simt::lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::m_tiles; ++i)
#pragma unroll
    for (int j = 0; j < Tile::n_tiles; ++j) {
      const std::size_t at_m = m + static_cast<unsigned>(i) * 16 + row;
      const std::size_t at_n = n + static_cast<unsigned>(j) * 8 + column;
      finish_pair(args, at_m, at_n, sums.c[i][j][0], sums.c[i][j][1]);
      finish_pair(args, at_m + 8, at_n, sums.c[i][j][2], sums.c[i][j][3]);
    }
}

// -- one block a leaf ---------------------------------------------------------

/// Adds up the leaves of one tile, ascending, once all are there: the block that comes last does
/// it.
/// @returns whether this block has, and `sums` is the tile's.
template <int Threads, class Tile>
ROLLCAST_DEVICE bool gather_leaves(const gemm_work& work, std::size_t tile, unsigned leaf,
                                   Tile& sums) {
  constexpr int held = Tile::m_tiles * Tile::n_tiles * 4;
  const std::size_t tiles = std::size_t{work.m_tiles} * work.n_tiles;
  float* const all = work.partials + tile * held * Threads + simt::thread_x();
  const std::size_t leaf_stride = tiles * held * Threads;
#pragma unroll
  for (int i = 0; i < held; ++i)
    all[leaf * leaf_stride + static_cast<std::size_t>(i * Threads)] =
      sums.c[i / 4 / Tile::n_tiles][i / 4 % Tile::n_tiles][i % 4];
  simt::fence();
  simt::sync_block();
  auto* const arrived = reinterpret_cast<std::uint32_t*>(simt::shared_memory());
  if (simt::thread_x() == 0) {
    *arrived = simt::atomic_add(work.counters + tile, 1u);
    if (*arrived + 1 == work.leaves)
      work.counters[tile] = 0; // Ready for the next product.
  }
  simt::sync_block();
  if (*arrived + 1 != work.leaves)
    return false;
  simt::fence();
  sums.clear();
  for (unsigned from = 0; from < work.leaves; ++from)
#pragma unroll
    for (int i = 0; i < held; ++i) {
      float& sum = sums.c[i / 4 / Tile::n_tiles][i / 4 % Tile::n_tiles][i % 4];
      const float leaf_sum =
        simt::load_fresh(all + from * leaf_stride + static_cast<std::size_t>(i * Threads));
      sum = from == 0 ? leaf_sum : sum + leaf_sum;
    }
  return true;
}

/// Grid: column tiles, row tiles, leaves.
template <int BM, int BN, int WM, int WN, int Stages>
ROLLCAST_KERNEL((block_tile<BM, BN, WM, WN, Stages>::threads), 2)
gemm_leaf_kernel(gemm_work work) {
  using block = block_tile<BM, BN, WM, WN, Stages>;
  const gemm_args& args = work.args;
  const std::size_t m = std::size_t{simt::block_y()} * BM, n = std::size_t{simt::block_x()} * BN;
  const unsigned leaf = simt::block_z();
  warp_tile<WM, WN> sums;
  sums.clear();
  block::walk({args.x, args.x_stride, m, args.rows, args.k}, {args.w, args.k, n, args.n, args.k},
              leaf_begin(work, leaf), leaf_begin(work, leaf + 1), sums,
              [](std::size_t, warp_tile<WM, WN>&) {});
  if (work.leaves > 1) {
    simt::sync_block(); // The stages are shared memory that `gather_leaves` uses for a number.
    const std::size_t tile = std::size_t{simt::block_y()} * work.n_tiles + simt::block_x();
    if (!gather_leaves<block::threads>(work, tile, leaf, sums))
      return;
  }
  finish(args, sums, m + block::warp_row(), n + block::warp_column());
}

// -- one block, all leaves ----------------------------------------------------

/// Grid: row tiles, column tiles.
template <int BM, int BN, int WM, int WN, int Stages, bool Leaves>
ROLLCAST_KERNEL((block_tile<BM, BN, WM, WN, Stages>::threads), 1)
gemm_tiles_kernel(gemm_work work) {
  using block = block_tile<BM, BN, WM, WN, Stages>;
  const gemm_args& args = work.args;
  const std::size_t m = std::size_t{simt::block_x()} * BM, n = std::size_t{simt::block_y()} * BN;
  const tile_source x{args.x, args.x_stride, m, args.rows, args.k};
  const tile_source w{args.w, args.k, n, args.n, args.k};
  warp_tile<WM, WN> sums;
  sums.clear();
  if constexpr (Leaves) {
    warp_tile<WM, WN> total;
    total.clear();
    unsigned leaf = 0;
    std::size_t edge = leaf_begin(work, 1);
    block::walk(x, w, 0, work.k_tiles, sums, [&](std::size_t tile, warp_tile<WM, WN>& acc) {
      if (tile + 1 != edge)
        return;
      if (leaf == 0)
        total = acc;
      else
        total.add(acc);
      acc.clear();
      edge = leaf_begin(work, ++leaf + 1);
    });
    finish(args, total, m + block::warp_row(), n + block::warp_column());
  } else {
    block::walk(x, w, 0, work.k_tiles, sums, [](std::size_t, warp_tile<WM, WN>&) {});
    finish(args, sums, m + block::warp_row(), n + block::warp_column());
  }
}

// -- choosing -----------------------------------------------------------------

unsigned ceil_div(std::size_t a, std::size_t b) noexcept {
  return static_cast<unsigned>((a + b - 1) / b);
}

template <int BM, int WM, int WN, int Stages>
device_status launch_leaves(gemm_work work, stream_handle stream) {
  using block = block_tile<BM, 64, WM, WN, Stages>;
  work.m_tiles = ceil_div(work.args.rows, BM);
  work.n_tiles = ceil_div(work.args.n, 64);
  const launch_shape shape{
    {work.n_tiles, work.m_tiles, work.leaves}, block::threads, block::shared_bytes};
  return launch("gemm by leaves", gemm_leaf_kernel<BM, 64, WM, WN, Stages>, shape, work, stream);
}

device_status launch_tiles(gemm_work work, stream_handle stream) {
  using block = block_tile<128, 128, 64, 32, 4>;
  static_assert(block::shared_bytes <= shared_bytes_needed);
  work.m_tiles = ceil_div(work.args.rows, 128);
  work.n_tiles = ceil_div(work.args.n, 128);
  const launch_shape shape{{work.m_tiles, work.n_tiles, 1}, block::threads, block::shared_bytes};
  return launch("gemm by tiles",
                work.leaves > 1 ? gemm_tiles_kernel<128, 128, 64, 32, 4, true>
                                : gemm_tiles_kernel<128, 128, 64, 32, 4, false>,
                shape, work, stream);
}

/// Rows up to which every leaf has a block of its own. Speed only.
constexpr std::size_t leaf_rows_max = 256;

gemm_variant variant_for(std::size_t rows) noexcept {
  if (rows <= 16)
    return gemm_variant::rows_16;
  if (rows <= 32)
    return gemm_variant::rows_32;
  return rows <= leaf_rows_max ? gemm_variant::rows_64 : gemm_variant::tiles;
}

/// Counters of tiles lie first in the workspace, at a place of their own, so that products of any
/// shape find them zero. A product of more than one leaf has 255 column tiles at most.
constexpr std::size_t counters_max = 255 * leaf_rows_max / 16;
constexpr std::size_t counter_bytes = (counters_max * sizeof(std::uint32_t) + 255) / 256 * 256;

bool aligned(const void* p) noexcept {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

} // namespace

std::uint32_t gemm_leaves(std::size_t n, std::size_t k) noexcept {
  const std::size_t columns = ceil_div(n, 64), k_tiles = ceil_div(k, k_tile);
  std::uint32_t leaves = 1;
  // Enough blocks for two on each of some 130 multiprocessors, with 512 of K in each at least.
  while (leaves < 16 && columns * leaves < 256 && k_tiles / (2 * leaves) >= 8)
    leaves *= 2;
  return leaves;
}

std::size_t gemm_workspace_bytes(std::size_t rows_max, std::size_t n, std::size_t k) noexcept {
  const std::uint32_t leaves = gemm_leaves(n, k);
  if (leaves == 1)
    return 0;
  // Whole tiles: at most 63 rows and 63 columns more than there are.
  const std::size_t padded_rows = std::size_t{ceil_div(std::min(rows_max, leaf_rows_max), 64)} * 64;
  const std::size_t padded_n = std::size_t{ceil_div(n, 64)} * 64;
  return counter_bytes + leaves * padded_rows * padded_n * sizeof(float);
}

device_status gemm(const gemm_args& args, stream_handle stream) {
  if (args.rows == 0 || args.n == 0)
    return {};
  if (args.k == 0 || args.k % 8 != 0 || args.x_stride % 8 != 0 || !aligned(args.x)
      || !aligned(args.w) || (args.epilogue == gemm_epilogue::silu_pairs && args.n % 2 != 0))
    return refused("gemm of " + std::to_string(args.rows) + " rows, n " + std::to_string(args.n)
                   + ", k " + std::to_string(args.k)
                   + ": k and the stride of x must be multiples of 8, x and w aligned to 16 bytes, "
                     "and n even for pairs");
  gemm_work work{args,   gemm_leaves(args.n, args.k), ceil_div(args.k, k_tile), 0, 0, nullptr,
                 nullptr};
  const gemm_variant variant =
    args.variant == gemm_variant::automatic ? variant_for(args.rows) : args.variant;
  if (work.leaves > 1 && variant != gemm_variant::tiles) {
    if (args.workspace == nullptr || args.rows > leaf_rows_max)
      return refused("gemm of " + std::to_string(args.rows) + " rows by "
                     + std::to_string(work.leaves)
                     + " leaves: needs a workspace, and takes at most 256 rows");
    work.counters = reinterpret_cast<std::uint32_t*>(args.workspace);
    work.partials = reinterpret_cast<float*>(args.workspace + counter_bytes);
  }
  switch (variant) {
    case gemm_variant::rows_16: return launch_leaves<16, 16, 16, 6>(work, stream);
    case gemm_variant::rows_32: return launch_leaves<32, 32, 16, 6>(work, stream);
    case gemm_variant::rows_64: return launch_leaves<64, 32, 32, 4>(work, stream);
    default: return launch_tiles(work, stream);
  }
}

} // namespace rollcast::kernels::cuda
