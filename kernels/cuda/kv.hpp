#pragma once

#include "kernels/cuda/runtime.hpp"
#include "kernels/kv_copy.hpp"
#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>

/// Moving KV within the device. The cache is that of kernels/kv_layout.hpp with bf16 elements,
/// layer after layer, so that an image of groups means the same on every worker of one profile.
namespace rollcast::kernels::cuda {

/// Whether a cache holds bf16 keys and values of one width, as all kernels of this folder take it.
constexpr bool has_plain_tiles(const kv_layout& kv) noexcept {
  return kv.type == dtype::bf16
         && kv.group_bytes() == kv.kv_heads * 2 * kv_group * kv.head_dim * sizeof(std::uint16_t);
}

/// The caches of all layers: layer i begins at `first.data + i * layer_bytes`.
struct kv_cache {
  kv_layout first;
  std::size_t layers = 0;
  std::size_t layer_bytes = 0;
};

/// Does `count` copies of slots, in their order, in one layer: as `copy_kv_cpu`.
/// @param copies     of the device. @param count of the device, read when the kernel runs.
device_status copy_kv(const kv_layout& kv, const kv_slots* copies, const std::uint32_t* count,
                      stream_handle stream);

/// Copies the first `groups` groups of a block list out of the cache into `image`, laid out
/// [layer][group] as `backend::export_kv` has it. `blocks` and `image` are of the device (or
/// pinned).
device_status pack_kv(const kv_cache& cache, const std::uint32_t* blocks, std::size_t groups,
                      std::byte* image, stream_handle stream);

/// The other way.
device_status unpack_kv(const kv_cache& cache, const std::uint32_t* blocks, std::size_t groups,
                        const std::byte* image, stream_handle stream);

} // namespace rollcast::kernels::cuda
