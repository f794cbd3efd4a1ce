#pragma once

#include "engine/backend/thread_pool.hpp"
#include "kernels/gemm.hpp"

#include <cstddef>

namespace rollcast {

/// Items of one run of a shared loop, from an estimate of what one item costs. Speed only.
std::size_t grain_for(double item_ns) noexcept;

/// Estimated time of one output panel against `rows` rows of width `k`. Speed only.
double panel_ns(double rows, std::size_t k) noexcept;

/// Packs rows of `x` (`stride` elements apart) into `memory`, which is long enough.
kernels::packed_rows pack_shared(thread_pool& pool, const float* x, std::size_t stride,
                                 std::size_t rows, std::size_t k, kernels::arithmetic how,
                                 std::byte* memory);

/// One product, its panels shared by the team.
void multiply_shared(thread_pool& pool, const kernels::gemm_args& args);

/// out = silu(gate) * up of `rows` rows of [2 * dim], shared by the team.
void silu_mul_shared(thread_pool& pool, const float* gate_up, float* out, std::size_t rows,
                     std::size_t dim);

} // namespace rollcast
