#include "engine/backend/cpu_ops.hpp"

#include "kernels/elementwise.hpp"

#include <algorithm>

namespace rollcast {

namespace {

/// Time that one shared run of a loop should take: long against the cost of claiming it, short
/// against the imbalance it can leave. Speed only.
constexpr double run_ns = 8000;

} // namespace

std::size_t grain_for(double item_ns) noexcept {
  return std::max<std::size_t>(1, static_cast<std::size_t>(run_ns / std::max(item_ns, 0.1)));
}

double panel_ns(double rows, std::size_t k) noexcept {
  // A panel costs its bytes at memory speed or its products at the FMA rate, whichever is more.
  return static_cast<double>(k) * std::max(4.0, 0.6 * rows);
}

kernels::packed_rows pack_shared(thread_pool& pool, const float* x, std::size_t stride,
                                 std::size_t rows, std::size_t k, kernels::arithmetic how,
                                 std::byte* memory) {
  const kernels::packed_rows packed{memory, rows, k, how};
  const std::size_t tiles = kernels::row_tile_count(how, rows);
  const double tile_ns = 0.3 * static_cast<double>(rows * k) / static_cast<double>(tiles);
  pool.run(tiles, grain_for(tile_ns), [&](std::size_t begin, std::size_t end, std::size_t) {
    kernels::pack_rows(x, stride, packed, begin, end);
  });
  return packed;
}

void multiply_shared(thread_pool& pool, const kernels::gemm_args& args) {
  const std::size_t panels = kernels::panel_count(args.w.n);
  const std::size_t share = std::max<std::size_t>(1, panels / (pool.size() * 8));
  pool.run(
    panels, std::max(grain_for(panel_ns(static_cast<double>(args.x.rows), args.x.k)), share),
    [&](std::size_t begin, std::size_t end, std::size_t) { kernels::gemm_cpu(args, begin, end); });
}

void silu_mul_shared(thread_pool& pool, const float* gate_up, float* out, std::size_t rows,
                     std::size_t dim) {
  const kernels::silu_mul_args args{gate_up, 2 * dim, out, dim, dim};
  pool.run(rows, grain_for(0.8 * static_cast<double>(dim)),
           [&](std::size_t begin, std::size_t end, std::size_t) {
             kernels::silu_mul_cpu(args, begin, end);
           });
}

} // namespace rollcast
