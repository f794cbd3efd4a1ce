#include "kernels/rope.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/rms_norm-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

/// Rotates the first dimensions of one head in place. Half of them are a multiple of eight, so
/// eight lanes always fit.
HWY_INLINE void rotate_head(float* head, const float* cos_sin, std::size_t rotary_dim) {
  const hn::CappedTag<float, 8> d;
  const std::size_t half = rotary_dim / 2;
  for (std::size_t i = 0; i < half; i += hn::Lanes(d)) {
    const auto c = hn::LoadU(d, cos_sin + i);
    const auto s = hn::LoadU(d, cos_sin + half + i);
    const auto x1 = hn::LoadU(d, head + i);
    const auto x2 = hn::LoadU(d, head + half + i);
    hn::StoreU(hn::MulSub(x1, c, hn::Mul(x2, s)), d, head + i);
    hn::StoreU(hn::MulAdd(x2, c, hn::Mul(x1, s)), d, head + half + i);
  }
}

HWY_INLINE void store_kv(float* k, float* v, std::size_t lane, std::size_t head_dim, float* k_tile,
                         float* v_tile) {
  for (std::size_t d = 0; d < head_dim; ++d)
    k_tile[d * kv_group + lane] = k[d];
  for (std::size_t d = 0; d < head_dim; ++d)
    v_tile[lane * head_dim + d] = v[d];
}

HWY_INLINE void store_kv(float* k, float* v, std::size_t lane, std::size_t head_dim,
                         std::uint16_t* k_tile, std::uint16_t* v_tile) {
  for (std::size_t d = 0; d < head_dim; ++d)
    k_tile[d * kv_group + lane] = round_bf16(k[d]);
  for (std::size_t d = 0; d < head_dim; ++d)
    v_tile[lane * head_dim + d] = round_bf16(v[d]);
}

template <class T>
HWY_INLINE void qkv_rope_row(const qkv_rope_args& args, std::size_t r) {
  const std::size_t dim = args.kv.head_dim;
  float* row = args.qkv + r * args.qkv_stride;
  const row_place place = args.places[r];
  const std::size_t rotary = args.rotary_dim != 0 ? args.rotary_dim : dim;
  const float* cos_sin = args.cos_sin + place.position * rotary;
  for (std::size_t h = 0; h < args.heads + args.kv_heads; ++h) {
    float* head = row + h * dim;
    if (const float* norm = h < args.heads ? args.q_norm : args.k_norm)
      rms_norm_row(head, norm, head, dim, args.eps);
    rotate_head(head, cos_sin, rotary);
  }
  float* k = row + args.heads * dim;
  float* v = k + args.kv_heads * dim;
  const std::size_t slot = place.position % args.kv.block_tokens;
  for (std::size_t h = 0; h < args.kv_heads; ++h) {
    std::byte* tile = args.kv.data + args.kv.k_offset(place.kv_block, slot, h);
    store_kv(k + h * dim, v + h * dim, slot % kv_group, dim, reinterpret_cast<T*>(tile),
             reinterpret_cast<T*>(tile + args.kv.tile_bytes()));
  }
}

void qkv_rope_rows(const qkv_rope_args& args, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t r = row_begin; r < row_end; ++r) {
    if (args.kv.type == dtype::f32)
      qkv_rope_row<float>(args, r);
    else
      qkv_rope_row<std::uint16_t>(args, r);
  }
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rollcast::kernels {

HWY_EXPORT(qkv_rope_rows);

void qkv_rope_append_cpu(const qkv_rope_args& args, std::size_t row_begin,
                         std::size_t row_end) noexcept {
  HWY_DYNAMIC_DISPATCH(qkv_rope_rows)(args, row_begin, row_end);
}

} // namespace rollcast::kernels
#endif
