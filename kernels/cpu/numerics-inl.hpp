// The vector form of kernels/numerics.hpp. Included once per instruction set.

#if defined(ROLLCAST_NUMERICS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ROLLCAST_NUMERICS_INL
#undef ROLLCAST_NUMERICS_INL
#else
#define ROLLCAST_NUMERICS_INL
#endif

#include "kernels/numerics.hpp"
#include "kernels/reduce_order.hpp"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The house vector of f32: at most the 16 lanes of AVX-512.
using f32_tag = hn::CappedTag<float, 16>;
using f32_vec = hn::Vec<f32_tag>;
inline constexpr f32_tag f32{};
inline constexpr std::size_t lanes = hn::MaxLanes(f32);
/// Registers that hold the 64 lanes of one reduction.
inline constexpr std::size_t reduce_vectors = reduce_lanes / lanes;

/// `exp_f32` of every lane, bit for bit.
HWY_INLINE f32_vec exp_f32_vec(f32_vec x) {
  namespace c = exp_f32_constants;
  const hn::RebindToUnsigned<f32_tag> u32;
  const auto round_bias = hn::Set(f32, c::round_bias);
  const auto biased = hn::MulAdd(x, hn::Set(f32, c::log2_e), round_bias);
  const auto n = hn::Sub(biased, round_bias);
  const auto r =
    hn::NegMulAdd(n, hn::Set(f32, c::ln2_low), hn::NegMulAdd(n, hn::Set(f32, c::ln2_high), x));
  auto p = hn::MulAdd(hn::Set(f32, c::poly[0]), r, hn::Set(f32, c::poly[1]));
  p = hn::MulAdd(p, r, hn::Set(f32, c::poly[2]));
  p = hn::MulAdd(p, r, hn::Set(f32, c::poly[3]));
  p = hn::MulAdd(p, r, hn::Set(f32, c::poly[4]));
  p = hn::MulAdd(p, r, hn::Set(f32, c::poly[5]));
  const auto y = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(f32, 1.0f));
  const auto scaled =
    hn::BitCast(f32, hn::Add(hn::BitCast(u32, y), hn::ShiftLeft<23>(hn::BitCast(u32, biased))));
  const auto infinity = hn::Set(f32, std::numeric_limits<float>::infinity());
  const auto capped =
    hn::IfThenElse(hn::Le(x, hn::Set(f32, c::x_max)), scaled, hn::Add(x, infinity));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(f32, c::x_min)), capped);
}

/// Folds the lanes of one vector: upper half onto lower half until one lane is left.
template <class D>
HWY_INLINE float fold_lanes(D, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 1) {
    return hn::GetLane(v);
  } else {
    const hn::Half<D> half;
    return fold_lanes(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

/// Folds 64 lanes held as consecutive vectors, in the order of kernels/reduce_order.hpp.
HWY_INLINE float fold_64(const f32_vec* acc) {
  f32_vec part[reduce_vectors];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < reduce_vectors; ++i)
    part[i] = acc[i];
#pragma GCC unroll 4
  for (std::size_t half = reduce_vectors / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (std::size_t i = 0; i < half; ++i)
      part[i] = hn::Add(part[i], part[i + half]);
  return fold_lanes(f32, part[0]);
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
