// One row of RMSNorm, shared by the norm kernel and by the heads of Qwen3. Once per instruction
// set.

#if defined(ROLLCAST_RMS_NORM_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ROLLCAST_RMS_NORM_INL
#undef ROLLCAST_RMS_NORM_INL
#else
#define ROLLCAST_RMS_NORM_INL
#endif

#include "kernels/cpu/numerics-inl.hpp"

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

/// Sum of squares of one row, in the house order.
HWY_INLINE float sum_of_squares(const float* x, std::size_t dim) {
  f32_vec acc[reduce_vectors];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < reduce_vectors; ++i)
    acc[i] = hn::Zero(f32);
  std::size_t at = 0;
  for (; at + reduce_lanes <= dim; at += reduce_lanes) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < reduce_vectors; ++i) {
      const auto v = hn::LoadU(f32, x + at + i * lanes);
      acc[i] = hn::MulAdd(v, v, acc[i]);
    }
  }
  if (at < dim) { // Zeros leave the sums, which are never -0, as they are.
    HWY_ALIGN float tail[reduce_lanes] = {};
    for (std::size_t i = 0; at + i < dim; ++i)
      tail[i] = x[at + i];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < reduce_vectors; ++i) {
      const auto v = hn::Load(f32, tail + i * lanes);
      acc[i] = hn::MulAdd(v, v, acc[i]);
    }
  }
  return fold_64(acc);
}

/// y = x / sqrt(mean(x^2) + eps) * w. `y` may be `x`.
HWY_INLINE void rms_norm_row(const float* x, const float* w, float* y, std::size_t dim, float eps) {
  const float root = std::sqrt(sum_of_squares(x, dim) / static_cast<float>(dim) + eps);
  const auto roots = hn::Set(f32, root);
  std::size_t d = 0;
  for (; d + lanes <= dim; d += lanes)
    hn::StoreU(hn::Mul(hn::Div(hn::LoadU(f32, x + d), roots), hn::LoadU(f32, w + d)), f32, y + d);
  for (; d < dim; ++d)
    y[d] = x[d] / root * w[d];
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
