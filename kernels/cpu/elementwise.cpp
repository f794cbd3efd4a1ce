#include "kernels/elementwise.hpp"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/numerics-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

HWY_INLINE f32_vec silu_mul_vec(f32_vec gate, f32_vec up) {
  const auto one = hn::Set(f32, 1.0f);
  return hn::Mul(hn::Div(gate, hn::Add(one, exp_f32_vec(hn::Neg(gate)))), up);
}

void silu_mul_rows(const silu_mul_args& args, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t r = row_begin; r < row_end; ++r) {
    const float* gate = args.gate_up + r * args.gate_up_stride;
    const float* up = gate + args.dim;
    float* out = args.out + r * args.out_stride;
    std::size_t d = 0;
    for (; d + lanes <= args.dim; d += lanes)
      hn::StoreU(silu_mul_vec(hn::LoadU(f32, gate + d), hn::LoadU(f32, up + d)), f32, out + d);
    if (d < args.dim) {
      HWY_ALIGN float tail[3][lanes] = {};
      const std::size_t bytes = (args.dim - d) * sizeof(float);
      std::memcpy(tail[0], gate + d, bytes);
      std::memcpy(tail[1], up + d, bytes);
      hn::Store(silu_mul_vec(hn::Load(f32, tail[0]), hn::Load(f32, tail[1])), f32, tail[2]);
      std::memcpy(out + d, tail[2], bytes);
    }
  }
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rollcast::kernels {

HWY_EXPORT(silu_mul_rows);

void silu_mul_cpu(const silu_mul_args& args, std::size_t row_begin, std::size_t row_end) noexcept {
  HWY_DYNAMIC_DISPATCH(silu_mul_rows)(args, row_begin, row_end);
}

void widen_row_cpu(const void* source, dtype source_type, std::size_t dim, float* out) noexcept {
  if (source_type == dtype::f32) {
    std::memcpy(out, source, dim * sizeof(float));
    return;
  }
  const auto* bytes = static_cast<const unsigned char*>(source);
  for (std::size_t d = 0; d < dim; ++d) {
    std::uint16_t bits; // A tensor in a mapped file may start at an odd byte.
    std::memcpy(&bits, bytes + 2 * d, 2);
    out[d] = source_type == dtype::bf16 ? widen_bf16(bits) : widen_f16(bits);
  }
}

} // namespace rollcast::kernels
#endif
