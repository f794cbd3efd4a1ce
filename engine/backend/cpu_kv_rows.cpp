#include "engine/backend/cpu_kv_rows.hpp"

#include <cstring>

namespace rollcast {

namespace {

float element_at(const kernels::kv_layout& kv, const std::byte* tile, std::size_t index) noexcept {
  if (kv.type == kernels::dtype::f32) {
    float value = 0;
    std::memcpy(&value, tile + index * sizeof value, sizeof value);
    return value;
  }
  std::uint16_t bits = 0; // a cache is f32 or bf16
  std::memcpy(&bits, tile + index * sizeof bits, sizeof bits);
  return kernels::widen_bf16(bits);
}

} // namespace

void read_kv_rows(const kernels::kv_layout& kv, std::span<const kernels::row_place> places,
                  bool keys, float* out) noexcept {
  using kernels::kv_group;
  for (const auto& place : places) {
    const std::size_t slot = place.position % kv.block_tokens;
    const std::size_t lane = slot % kv_group;
    for (std::size_t head = 0; head < kv.kv_heads; ++head) {
      const std::byte* const k_tile = kv.data + kv.k_offset(place.kv_block, slot, head);
      const bool in_k_tile = keys || kv.latent_dim != 0;
      const std::byte* const tile = in_k_tile ? k_tile : k_tile + kv.tile_bytes();
      for (std::size_t d = 0; d < (keys ? kv.head_dim : kv.value_dim()); ++d)
        *out++ = element_at(kv, tile, in_k_tile ? d * kv_group + lane : lane * kv.head_dim + d);
    }
  }
}

} // namespace rollcast
