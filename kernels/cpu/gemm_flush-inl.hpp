// One FMA of the bf16 profile for machines that cannot make their FMA flush like vdpbf16ps.
#if defined(ROLLCAST_GEMM_FLUSH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ROLLCAST_GEMM_FLUSH_INL
#undef ROLLCAST_GEMM_FLUSH_INL
#else
#define ROLLCAST_GEMM_FLUSH_INL
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Subnormals become zero of the same sign.
template <class D>
HWY_INLINE hn::Vec<D> flush_inputs(D d, hn::Vec<D> x) {
  const auto small = hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-126f));
  return hn::IfThenElse(small, hn::And(x, hn::Set(d, -0.0f)), x);
}

/// w * x + acc, rounded once, then zero of the same sign if tiny. Tiny is judged as x86 does, after
/// rounding to 24 bits with an unbounded exponent: of the exact results that round to 2^-126, those
/// below 2^-126 * (1 - 2^-25) are tiny all the same. They are told apart by the same FMA scaled by
/// 2^64. `w`, `x` and `acc` are no subnormals, and `w` and `x` are bf16 values.
template <class D>
HWY_INLINE hn::Vec<D> fma_flush(D d, hn::Vec<D> w, hn::Vec<D> x, hn::Vec<D> acc) {
  const auto sum = hn::MulAdd(w, x, acc);
  const auto suspect =
    hn::And(hn::Le(hn::Abs(sum), hn::Set(d, 0x1p-126f)), hn::Ne(sum, hn::Zero(d)));
  if (HWY_LIKELY(hn::AllFalse(d, suspect)))
    return sum;
  // |sum| <= 2^-126 bounds |acc| and |w * x| to about 2^-102, so the smaller factor can be scaled.
  const auto w_smaller = hn::Lt(hn::Abs(w), hn::Abs(x));
  const auto smaller = hn::Mul(hn::IfThenElse(w_smaller, w, x), hn::Set(d, 0x1p64f));
  const auto larger = hn::IfThenElse(w_smaller, x, w);
  const auto scaled = hn::MulAdd(smaller, larger, hn::Mul(acc, hn::Set(d, 0x1p64f)));
  const auto tiny = hn::And(suspect, hn::Lt(hn::Abs(scaled), hn::Set(d, 0x1p-62f)));
  return hn::IfThenElse(tiny, hn::And(sum, hn::Set(d, -0.0f)), sum);
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
