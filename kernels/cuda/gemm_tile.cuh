#pragma once

// One block's part of a product: a BM x BN tile of y over a range of K tiles. Pieces of gemm.cu.

#include "kernels/cuda/simt.cuh"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

/// K of one stage of the pipeline: 128 bytes of a row, eight chunks of 16.
inline constexpr int k_tile = 64;
inline constexpr int row_chunks = k_tile / 8;

/// Where chunk `chunk` of row `row` lies in a stage: eight rows that ldmatrix reads together, at
/// one chunk, fall on eight different groups of banks.
ROLLCAST_DEVICE unsigned swizzled(unsigned row, unsigned chunk) {
  return row * (k_tile * 2) + ((chunk ^ (row & 7u)) * 16);
}

/// Rows of `x` or `w` that a block reads: rows past `rows` and elements past `k` are zeros.
struct tile_source {
  const std::uint16_t* data;
  std::size_t stride;
  std::size_t first;
  std::size_t rows;
  std::size_t k;
};

/// Begins to copy `Rows` rows of K tile `tile` to `to`.
template <int Rows, int Threads>
ROLLCAST_DEVICE void fetch_tile(const tile_source& from, std::size_t tile, unsigned char* to) {
  constexpr int chunks = Rows * row_chunks;
#pragma unroll
  for (int i = 0; i < (chunks + Threads - 1) / Threads; ++i) {
    const unsigned at = simt::thread_x() + static_cast<unsigned>(i * Threads);
    if (chunks % Threads != 0 && at >= static_cast<unsigned>(chunks))
      break;
    const unsigned row = at / row_chunks, chunk = at % row_chunks;
    const std::size_t r = from.first + row, k = tile * k_tile + chunk * 8;
    const bool valid = r < from.rows && k < from.k;
    const std::uint16_t* const source = valid ? from.data + r * from.stride + k : from.data;
    simt::copy_async_16(to + swizzled(row, chunk), source, valid);
  }
}

/// The accumulators of one warp: WM / 16 times WN / 8 fragments of 16 x 8.
template <int WM, int WN>
struct warp_tile {
  static constexpr int m_tiles = WM / 16, n_tiles = WN / 8;
  float c[m_tiles][n_tiles][4];

  ROLLCAST_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          c[m][n][i] = 0.0f;
  }

  ROLLCAST_DEVICE void add(const warp_tile& other) {
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          c[m][n][i] = c[m][n][i] + other.c[m][n][i];
  }

  /// Adds one stage: four steps of the chain of every element, K ascending.
  /// @param x stage of x, @param w stage of w; @param m, n where the warp's rows and columns begin.
  ROLLCAST_DEVICE void multiply(const unsigned char* x, const unsigned char* w, unsigned m,
                                unsigned n) {
    const unsigned lane = simt::lane();
#pragma unroll
    for (unsigned step = 0; step < k_tile / 16; ++step) {
      std::uint32_t a[m_tiles][4];
#pragma unroll
      for (int i = 0; i < m_tiles; ++i)
        simt::load_matrix_x4(
          a[i], x + swizzled(m + static_cast<unsigned>(i) * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
      for (int j = 0; j < n_tiles; j += 2) {
        // Two column tiles: w's rows are columns of y, and its K lies as mma wants it.
        std::uint32_t b[4];
        const unsigned row = n + static_cast<unsigned>(j) * 8 + lane / 16 * 8 + lane % 8;
        simt::load_matrix_x4(b, w + swizzled(row, 2 * step + lane / 8 % 2));
        const std::uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int i = 0; i < m_tiles; ++i) {
          simt::mma_bf16(c[i][j], a[i], first);
          simt::mma_bf16(c[i][j + 1], a[i], second);
        }
      }
    }
  }
};

/// How a block divides its tile among warps, and its shared memory among stages.
template <int BM, int BN, int WM, int WN, int Stages>
struct block_tile {
  static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0 && Stages >= 2);
  static constexpr int threads = (BM / WM) * (BN / WN) * 32;
  static constexpr int x_bytes = BM * k_tile * 2, w_bytes = BN * k_tile * 2;
  static constexpr int stage_bytes = x_bytes + w_bytes;
  static constexpr std::size_t shared_bytes = std::size_t{Stages} * stage_bytes;

  ROLLCAST_DEVICE static unsigned warp_row() { return simt::warp() / (BN / WN) * WM; }
  ROLLCAST_DEVICE static unsigned warp_column() { return simt::warp() % (BN / WN) * WN; }

  ROLLCAST_DEVICE static void fetch(const tile_source& x, const tile_source& w, std::size_t tile,
                                    std::size_t stage) {
    unsigned char* const to = simt::shared_memory() + stage * stage_bytes;
    fetch_tile<BM, threads>(x, tile, to);
    fetch_tile<BN, threads>(w, tile, to + x_bytes);
  }

  /// Walks K tiles [begin, end) and calls `after(tile, acc)` behind each.
  template <class After>
  ROLLCAST_DEVICE static void walk(const tile_source& x, const tile_source& w, std::size_t begin,
                                   std::size_t end, warp_tile<WM, WN>& acc, const After& after) {
#pragma unroll
    for (int i = 0; i < Stages - 1; ++i) {
      if (begin + static_cast<std::size_t>(i) < end)
        fetch(x, w, begin + static_cast<std::size_t>(i), static_cast<std::size_t>(i));
      simt::copy_async_commit();
    }
    std::size_t stage = 0, ahead = Stages - 1;
    for (std::size_t tile = begin; tile < end; ++tile) {
      simt::copy_async_wait<Stages - 2>();
      simt::sync_block(); // The stage has come for all, and all have done with the one before.
      if (tile + (Stages - 1) < end)
        fetch(x, w, tile + (Stages - 1), ahead);
      simt::copy_async_commit();
      const unsigned char* const at = simt::shared_memory() + stage * stage_bytes;
      acc.multiply(at, at + x_bytes, warp_row(), warp_column());
      after(tile, acc);
      stage = stage + 1 == Stages ? 0 : stage + 1;
      ahead = ahead + 1 == Stages ? 0 : ahead + 1;
    }
  }
};

} // namespace rollcast::kernels::cuda
