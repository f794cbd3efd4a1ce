#include "kernels/rms_norm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rms_norm.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/rms_norm-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

void rms_norm_rows(const rms_norm_args& args, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t r = row_begin; r < row_end; ++r)
    rms_norm_row(args.x + r * args.x_stride, args.w, args.y + r * args.y_stride, args.dim,
                 args.eps);
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rollcast::kernels {

HWY_EXPORT(rms_norm_rows);

void rms_norm_cpu(const rms_norm_args& args, std::size_t row_begin, std::size_t row_end) noexcept {
  HWY_DYNAMIC_DISPATCH(rms_norm_rows)(args, row_begin, row_end);
}

} // namespace rollcast::kernels
#endif
