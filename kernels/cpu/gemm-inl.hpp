// The GEMM's inner loops, compiled once per Highway target by gemm.cpp. Lanes run over output
// columns and every accumulator is one chain over k, ascending, so neither the vector width nor the
// tile shape can change a bit.
#if defined(ROLLCAST_GEMM_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ROLLCAST_GEMM_INL
#undef ROLLCAST_GEMM_INL
#else
#define ROLLCAST_GEMM_INL
#endif

#include "kernels/cpu/gemm_flush-inl.hpp"
#include "kernels/cpu/gemm_kernels.hpp"

#include <hwy/highway.h>
#if HWY_ARCH_X86
#include <xmmintrin.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR

/// Highway's fallback has no fused multiply-add, and instruction_sets() does not list it. Compiling
/// the loops for it all the same takes minutes under a sanitizer.
const detail::gemm_kernels* gemm_code() {
  return nullptr;
}

#else
namespace hn = hwy::HWY_NAMESPACE;

using detail::gemm_epilogue;
using detail::gemm_loops;
using detail::gemm_tile;
using float_tag = hn::ScalableTag<float>;
using word_tag = hn::Rebind<std::uint32_t, float_tag>;
using floats = hn::Vec<float_tag>;

constexpr std::size_t lanes = HWY_MAX_BYTES / sizeof(float);
/// One pass is what the registers hold: a whole tile and panel with 32 registers of 16 lanes, else
/// 6 rows of half a panel (12 accumulators of 16 registers with AVX2).
constexpr bool wide = lanes == 16;
constexpr std::size_t pass_columns = wide ? panel_columns : panel_columns / 2;
constexpr std::size_t pass_vectors = pass_columns / lanes;
constexpr std::size_t pass_rows_max = wide ? detail::tile_rows_max : 6;

// -- one step of k ------------------------------------------------------------
// A policy says how the two steps of a pair of k are read and added. `w` and `x` point at the pair;
// the tile has R rows.

/// f32 weights [2][32], f32 activations [2][R].
struct step_f32 {
  static constexpr std::size_t weight_bytes = detail::panel_pair_bytes(dtype::f32);
  static constexpr std::size_t row_bytes = detail::row_pair_bytes(arithmetic::f32);

  static HWY_INLINE floats weight(const std::byte* w, std::size_t step, std::size_t column) {
    const auto* values = reinterpret_cast<const float*>(w);
    return hn::Load(float_tag{}, values + step * panel_columns + column);
  }
  template <std::size_t R>
  static HWY_INLINE floats activation(const std::byte* x, std::size_t step, std::size_t row) {
    return hn::Set(float_tag{}, reinterpret_cast<const float*>(x)[step * R + row]);
  }
  static HWY_INLINE floats add(floats w, floats x, floats acc) { return hn::MulAdd(w, x, acc); }
};

/// bf16 weights [32][2] widened, f32 activations [2][R]; the even k is in the low half.
struct step_widen {
  static constexpr std::size_t weight_bytes = detail::panel_pair_bytes(dtype::bf16);
  static constexpr std::size_t row_bytes = step_f32::row_bytes;

  static HWY_INLINE floats weight(const std::byte* w, std::size_t step, std::size_t column) {
    const word_tag d;
    const auto pair = hn::Load(d, reinterpret_cast<const std::uint32_t*>(w) + column);
    return hn::BitCast(float_tag{}, step == 0 ? hn::ShiftLeft<16>(pair)
                                              : hn::And(pair, hn::Set(d, 0xffff0000u)));
  }
  template <std::size_t R>
  static HWY_INLINE floats activation(const std::byte* x, std::size_t step, std::size_t row) {
    return step_f32::activation<R>(x, step, row);
  }
  static HWY_INLINE floats add(floats w, floats x, floats acc) { return hn::MulAdd(w, x, acc); }
};

/// bf16 weights [32][2], bf16 activations [R][2]; the odd k first, as vdpbf16ps does.
struct step_bf16 {
  static constexpr std::size_t weight_bytes = step_widen::weight_bytes;
  static constexpr std::size_t row_bytes = detail::row_pair_bytes(arithmetic::bf16);

  static HWY_INLINE floats weight(const std::byte* w, std::size_t step, std::size_t column) {
    const floats widened = step_widen::weight(w, 1 - step, column);
    return HWY_ARCH_X86 ? widened : flush_inputs(float_tag{}, widened);
  }
  template <std::size_t R>
  static HWY_INLINE floats activation(const std::byte* x, std::size_t step, std::size_t row) {
    const std::uint32_t pair = reinterpret_cast<const std::uint32_t*>(x)[row];
    const std::uint32_t bits = step == 0 ? pair & 0xffff0000u : pair << 16;
    return hn::BitCast(float_tag{}, hn::Set(word_tag{}, bits));
  }
  static HWY_INLINE floats add(floats w, floats x, floats acc) {
    return HWY_ARCH_X86 ? hn::MulAdd(w, x, acc) : fma_flush(float_tag{}, w, x, acc);
  }
};

// -- the loops ----------------------------------------------------------------

/// Rows [Row, Row + N) of a tile of R rows x `pass_columns` from `column`.
template <class Step, std::size_t R, std::size_t Row, std::size_t N>
HWY_NOINLINE void run_pass(const gemm_tile& t, std::size_t column) {
  constexpr std::size_t V = pass_vectors;
  const float_tag d;
  float* const c = t.c + Row * panel_columns + column;
  floats acc[N][V];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < N; ++r)
#pragma GCC unroll 16
    for (std::size_t v = 0; v < V; ++v)
      acc[r][v] = t.resume ? hn::Load(d, c + r * panel_columns + v * lanes) : hn::Zero(d);

  const std::byte* w = t.w;
  const std::byte* x = t.x;
  const std::byte* ahead = t.ahead;
  const std::size_t ahead_step = t.ahead_step;
  for (std::size_t i = t.pairs; i != 0; --i) {
#pragma GCC unroll 2
    for (std::size_t step = 0; step < 2; ++step) {
      // The barrier keeps the compiler from holding both halves of a pair, which would spill.
      asm volatile("" ::: "memory");
      __builtin_prefetch(ahead, 0, 2);
      ahead += ahead_step;
      floats weight[V];
#pragma GCC unroll 16
      for (std::size_t v = 0; v < V; ++v)
        weight[v] = Step::weight(w, step, column + v * lanes);
#pragma GCC unroll 16
      for (std::size_t r = 0; r < N; ++r) {
        const floats a = Step::template activation<R>(x, step, Row + r);
#pragma GCC unroll 16
        for (std::size_t v = 0; v < V; ++v)
          acc[r][v] = Step::add(weight[v], a, acc[r][v]);
      }
    }
    w += Step::weight_bytes;
    x += R * Step::row_bytes;
  }

#pragma GCC unroll 16
  for (std::size_t r = 0; r < N; ++r)
#pragma GCC unroll 16
    for (std::size_t v = 0; v < V; ++v)
      hn::Store(acc[r][v], d, c + r * panel_columns + v * lanes);
}

/// All rows of the tile from `Row`, in passes of even height.
template <class Step, std::size_t R, std::size_t Row = 0>
void run_tile(const gemm_tile& t) {
  constexpr std::size_t left = R - Row;
  constexpr std::size_t passes = (left + pass_rows_max - 1) / pass_rows_max;
  constexpr std::size_t N = (left + passes - 1) / passes;
  for (std::size_t column = 0; column < panel_columns; column += pass_columns)
    run_pass<Step, R, Row, N>(t, column);
  if constexpr (Row + N < R)
    run_tile<Step, R, Row + N>(t);
}

/// The bf16 profile's tile. On x86 the FMAs flush by themselves in this mode, like vdpbf16ps also
/// in the last place; a call away from the arithmetic, so that none of it can move out of the mode.
template <std::size_t R>
void run_tile_bf16(const gemm_tile& t) {
#if HWY_ARCH_X86
  constexpr unsigned flush_to_zero = 0x8000;
  constexpr unsigned denormals_are_zero = 0x0040;
  constexpr unsigned all_exceptions_masked = 0x1f80;
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(all_exceptions_masked | flush_to_zero | denormals_are_zero);
  run_tile<step_bf16, R>(t);
  _mm_setcsr(mode);
#else
  run_tile<step_bf16, R>(t);
#endif
}

/// y = (c + bias) + y, without the additions that are not asked for.
void finish_tile(const gemm_epilogue& e) {
  const float_tag d;
  for (std::size_t r = 0; r < e.rows; ++r) {
    const float* c = e.c + r * panel_columns;
    float* y = e.y + r * e.y_stride;
    std::size_t column = 0;
    for (; column + lanes <= e.columns; column += lanes) {
      floats sum = hn::Load(d, c + column);
      if (e.bias != nullptr)
        sum = hn::Add(sum, hn::LoadU(d, e.bias + column));
      if (e.accumulate)
        sum = hn::Add(sum, hn::LoadU(d, y + column));
      hn::StoreU(sum, d, y + column);
    }
    for (; column < e.columns; ++column) {
      float sum = c[column];
      if (e.bias != nullptr)
        sum += e.bias[column];
      if (e.accumulate)
        sum += y[column];
      y[column] = sum;
    }
  }
}

template <class Step>
constexpr gemm_loops loops{
  {run_tile<Step, 1>, run_tile<Step, 2>, run_tile<Step, 3>, run_tile<Step, 4>, run_tile<Step, 5>,
   run_tile<Step, 6>, run_tile<Step, 7>, run_tile<Step, 8>, run_tile<Step, 9>, run_tile<Step, 10>,
   run_tile<Step, 11>, run_tile<Step, 12>, run_tile<Step, 13>}};

constexpr detail::gemm_kernels kernels{
  loops<step_f32>,
  loops<step_widen>,
  {{run_tile_bf16<1>, run_tile_bf16<2>, run_tile_bf16<3>, run_tile_bf16<4>, run_tile_bf16<5>,
    run_tile_bf16<6>, run_tile_bf16<7>, run_tile_bf16<8>, run_tile_bf16<9>, run_tile_bf16<10>,
    run_tile_bf16<11>, run_tile_bf16<12>, run_tile_bf16<13>}},
  finish_tile};

const detail::gemm_kernels* gemm_code() {
  return &kernels;
}

#endif // HWY_TARGET
} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
