#include "kernels/latent.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/latent.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/rms_norm-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

/// Rotates pairs of neighbours. Half of them are a multiple of eight, so eight lanes always fit.
HWY_INLINE void rotate_pairs(const float* x, const float* cos_sin, std::size_t dim, float* y) {
  const hn::CappedTag<float, 8> d;
  const std::size_t half = dim / 2;
  for (std::size_t i = 0; i < half; i += hn::Lanes(d)) {
    const auto c = hn::LoadU(d, cos_sin + i);
    const auto s = hn::LoadU(d, cos_sin + half + i);
    hn::Vec<decltype(d)> x1, x2;
    hn::LoadInterleaved2(d, x + 2 * i, x1, x2);
    hn::StoreInterleaved2(hn::MulSub(x1, c, hn::Mul(x2, s)), hn::MulAdd(x2, c, hn::Mul(x1, s)), d,
                          y + 2 * i);
  }
}

HWY_INLINE void store_key(const float* key, std::size_t begin, std::size_t end, std::size_t lane,
                          const kv_layout& kv, std::byte* tile) {
  if (kv.type == dtype::f32) {
    auto* to = reinterpret_cast<float*>(tile);
    for (std::size_t d = begin; d < end; ++d)
      to[d * kv_group + lane] = key[d - begin];
  } else {
    auto* to = reinterpret_cast<std::uint16_t*>(tile);
    for (std::size_t d = begin; d < end; ++d)
      to[d * kv_group + lane] = round_bf16(key[d - begin]);
  }
}

HWY_INLINE void latent_row(const latent_append_args& args, std::size_t r) {
  const std::size_t latent = args.kv.latent_dim, width = args.kv.head_dim;
  const row_place place = args.places[r];
  const float* cos_sin = args.cos_sin + place.position * args.rope;
  const float* q = args.q + r * args.q_stride;
  float* q_latent = args.q_latent + r * args.heads * width;
  for (std::size_t h = 0; h < args.heads; ++h)
    rotate_pairs(q + h * (args.nope + args.rope) + args.nope, cos_sin, args.rope,
                 q_latent + h * width + latent);
  const std::size_t slot = place.position % args.kv.block_tokens;
  std::byte* tile = args.kv.data + args.kv.k_offset(place.kv_block, slot, 0);
  const float* kv = args.kv_rows + r * args.kv_stride;
  HWY_ALIGN float key[latent_dim_max];
  rms_norm_row(kv, args.kv_norm, key, latent, args.eps);
  store_key(key, 0, latent, slot % kv_group, args.kv, tile);
  rotate_pairs(kv + latent, cos_sin, args.rope, key);
  store_key(key, latent, width, slot % kv_group, args.kv, tile);
}

void latent_rows(const latent_append_args& args, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t r = row_begin; r < row_end; ++r)
    latent_row(args, r);
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rollcast::kernels {

HWY_EXPORT(latent_rows);

void latent_append_cpu(const latent_append_args& args, std::size_t row_begin,
                       std::size_t row_end) noexcept {
  HWY_DYNAMIC_DISPATCH(latent_rows)(args, row_begin, row_end);
}

} // namespace rollcast::kernels
#endif
