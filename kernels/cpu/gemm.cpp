#include "kernels/gemm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cpp"
// foreach_target.h includes this file again for every instruction set, so it must come before
// anything that differs between them.
// clang-format off
#include <hwy/foreach_target.h>
#include "kernels/cpu/gemm-inl.hpp"
// clang-format on

#if HWY_ONCE
#include <algorithm>
#include <cstdlib>

namespace rollcast::kernels {
namespace {

using detail::gemm_epilogue;
using detail::gemm_tile;
using detail::tile_begin;

HWY_EXPORT(gemm_code);

/// Half of a 1 MiB L2: weights that stay there while all row tiles pass by.
constexpr std::size_t resident_bytes = std::size_t{512} << 10;
/// Activations that stay in L2 beside the weights, so that one panel at a time is enough.
constexpr std::size_t resident_rows_bytes = std::size_t{256} << 10;
/// How far ahead of themselves weights are fetched when they are read only once.
constexpr std::size_t ahead_bytes = 4096;
/// Row tiles that share one visit of a block of k when a panel alone exceeds `resident_bytes`.
constexpr std::size_t chunk_tiles = 8;

/// Weights to fetch while others are used.
struct fetch {
  const std::byte* from;
  std::size_t step; ///< See gemm_tile::ahead_step.
};

/// Everything that stays the same within one call of `gemm_cpu`.
struct gemm_job {
  const gemm_args& args;
  const detail::gemm_loops& loops;
  void (*epilogue)(const gemm_epilogue&);
  std::size_t pairs;
  std::size_t pair_bytes; ///< Of a panel.
  std::size_t row_bytes;  ///< Of an activation row's pair.
  std::size_t tiles;

  std::size_t panel_bytes() const { return pairs * pair_bytes; }
  const std::byte* panel_at(std::size_t panel) const { return args.w.data + panel * panel_bytes(); }
  std::size_t rows_of(std::size_t tile) const {
    return tile_begin(args.x.rows, tile + 1) - tile_begin(args.x.rows, tile);
  }

  /// Adds pairs [pair, pair + count) of `tile` x `panel` to `c`.
  void run(std::size_t tile, std::size_t panel, std::size_t pair, std::size_t count, float* c,
           fetch ahead) const {
    const std::size_t rows = rows_of(tile);
    const std::byte* x =
      args.x.data + (tile_begin(args.x.rows, tile) * pairs + pair * rows) * row_bytes;
    loops.by_rows[rows - 1](
      {panel_at(panel) + pair * pair_bytes, x, count, ahead.from, ahead.step, c, pair != 0});
  }

  /// Writes the finished accumulators of `tile` x `panel`.
  void finish(std::size_t tile, std::size_t panel, const float* c) const {
    const std::size_t column = panel * panel_columns;
    const float* bias = args.bias == nullptr ? nullptr : args.bias + column;
    float* y = args.y + tile_begin(args.x.rows, tile) * args.y_stride + column;
    epilogue({c, y, bias, rows_of(tile), std::min(panel_columns, args.w.n - column), args.y_stride,
              args.accumulate});
  }
};

/// One tile of rows: the weights are read once, and the limit is how fast they come from memory.
void run_stream(const gemm_job& job, std::size_t begin, std::size_t end) {
  alignas(64) float c[detail::tile_floats_max];
  for (std::size_t panel = begin; panel < end; ++panel) {
    job.run(0, panel, 0, job.pairs, c, {job.panel_at(panel) + ahead_bytes, job.pair_bytes / 2});
    job.finish(0, panel, c);
  }
}

/// Groups of panels stay in L2 while the row tiles pass by; meanwhile the next group is fetched, an
/// equal share by each tile, so that memory and FMA units work at the same time.
void run_resident(const gemm_job& job, std::size_t begin, std::size_t end, std::size_t group) {
  alignas(64) float c[detail::tile_floats_max];
  for (std::size_t first = begin; first < end; first += group) {
    const std::size_t last = std::min(first + group, end);
    for (std::size_t tile = 0; tile < job.tiles; ++tile)
      for (std::size_t panel = first; panel < last; ++panel) {
        const std::byte* next = job.panel_at(std::min(panel + group, end - 1));
        job.run(tile, panel, 0, job.pairs, c,
                {next + tile * job.panel_bytes() / job.tiles, job.pair_bytes / 2 / job.tiles});
        job.finish(tile, panel, c);
      }
  }
}

/// One panel too large for L2 against a chunk of row tiles: blocks of k stay in L2 while the chunk
/// passes by, and the next block (panels lie one after the other) is fetched meanwhile. The chains
/// pause in `c`, exactly, and go on with the next block.
void run_blocked(const gemm_job& job, std::size_t panel, std::size_t chunk) {
  alignas(64) float c[chunk_tiles * detail::tile_floats_max];
  const std::size_t block = resident_bytes / 2 / job.pair_bytes;
  const std::size_t count = std::min(chunk_tiles, job.tiles - chunk);
  for (std::size_t pair = 0; pair < job.pairs; pair += block) {
    const std::byte* next = job.panel_at(panel) + (pair + block) * job.pair_bytes;
    for (std::size_t i = 0; i < count; ++i)
      job.run(chunk + i, panel, pair, std::min(block, job.pairs - pair),
              c + i * detail::tile_floats_max,
              {next + i * block * job.pair_bytes / count, job.pair_bytes / 2 / count});
  }
  for (std::size_t i = 0; i < count; ++i)
    job.finish(chunk + i, panel, c + i * detail::tile_floats_max);
}

const detail::gemm_loops& choose_loops(const detail::gemm_kernels& code, arithmetic how,
                                       dtype weights) {
  if (weights == dtype::f16 || (how == arithmetic::bf16 && weights != dtype::bf16))
    std::abort(); // our own bug: no matrix is packed so
  if (how == arithmetic::f32)
    return weights == dtype::f32 ? code.f32_weights_f32 : code.f32_weights_bf16;
  const detail::gemm_loops* instruction = detail::bf16_instruction_loops();
  return instruction != nullptr && detail::has_bf16_instruction() ? *instruction : code.bf16;
}

} // namespace

void gemm_cpu(const gemm_args& args, std::size_t panel_begin, std::size_t panel_end) noexcept {
  const detail::gemm_kernels* code = HWY_DYNAMIC_DISPATCH(gemm_code)();
  if (code == nullptr)
    std::abort(); // the caller did not look at instruction_sets(), which is empty here
  const gemm_job job{args,
                     choose_loops(*code, args.x.how, args.w.type),
                     code->epilogue,
                     detail::pair_count(args.w.k),
                     detail::panel_pair_bytes(args.w.type),
                     detail::row_pair_bytes(args.x.how),
                     detail::tile_count(args.x.rows)};
  if (job.tiles == 0)
    return;
  if (job.tiles == 1)
    return run_stream(job, panel_begin, panel_end);
  if (job.panel_bytes() > resident_bytes) {
    for (std::size_t chunk = 0; chunk < job.tiles; chunk += chunk_tiles)
      for (std::size_t panel = panel_begin; panel < panel_end; ++panel)
        run_blocked(job, panel, chunk);
    return;
  }
  const bool rows_stay = args.x.rows * job.pairs * job.row_bytes <= resident_rows_bytes;
  const std::size_t fit = resident_bytes / 2 / std::max<std::size_t>(job.panel_bytes(), 1);
  run_resident(job, panel_begin, panel_end, rows_stay ? 1 : std::max<std::size_t>(fit, 1));
}

} // namespace rollcast::kernels
#endif // HWY_ONCE
