// The bf16 profile by its own instruction, vdpbf16ps.
#include "kernels/cpu/gemm_kernels.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

// Everything from here on may use AVX-512. The headers above stay outside, so that no inline
// function of theirs is compiled with instructions that another file's copy must not have.
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace rollcast::kernels::detail {
namespace {

constexpr std::size_t vectors = panel_columns / 16;

template <std::size_t R>
void run_tile(const gemm_tile& t) {
  __m512 acc[R][vectors];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (std::size_t v = 0; v < vectors; ++v)
      acc[r][v] = t.resume ? _mm512_load_ps(t.c + r * panel_columns + v * 16) : _mm512_setzero_ps();

  const std::byte* w = t.w;
  const auto* x = reinterpret_cast<const int*>(t.x);
  const std::byte* ahead = t.ahead;
  const std::size_t ahead_step = t.ahead_step;
  for (std::size_t i = t.pairs; i != 0; --i) {
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(ahead + ahead_step, 0, 2);
    ahead += 2 * ahead_step;
    __m512bh weight[vectors];
#pragma GCC unroll 16
    for (std::size_t v = 0; v < vectors; ++v)
      weight[v] = (__m512bh)_mm512_load_si512(w + v * 64);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < R; ++r) {
      const auto a = (__m512bh)_mm512_set1_epi32(x[r]);
#pragma GCC unroll 16
      for (std::size_t v = 0; v < vectors; ++v)
        acc[r][v] = _mm512_dpbf16_ps(acc[r][v], weight[v], a);
    }
    w += panel_pair_bytes(dtype::bf16);
    x += R;
  }

#pragma GCC unroll 16
  for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (std::size_t v = 0; v < vectors; ++v)
      _mm512_store_ps(t.c + r * panel_columns + v * 16, acc[r][v]);
}

constexpr gemm_loops loops{{run_tile<1>, run_tile<2>, run_tile<3>, run_tile<4>, run_tile<5>,
                            run_tile<6>, run_tile<7>, run_tile<8>, run_tile<9>, run_tile<10>,
                            run_tile<11>, run_tile<12>, run_tile<13>}};

} // namespace
} // namespace rollcast::kernels::detail
#pragma GCC pop_options

const rollcast::kernels::detail::gemm_loops*
rollcast::kernels::detail::bf16_instruction_loops() noexcept {
  return &loops;
}
#else
const rollcast::kernels::detail::gemm_loops*
rollcast::kernels::detail::bf16_instruction_loops() noexcept {
  return nullptr;
}
#endif
