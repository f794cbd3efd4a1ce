#pragma once

#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// Positions of one KV group, the unit in which K and V are laid out. Block sizes are multiples.
inline constexpr std::size_t kv_group = 16;

/// Width of the values of a latent cache at most.
inline constexpr std::size_t latent_dim_max = 512;

/// One layer's paged KV cache.
///
/// A block holds `block_tokens` positions as `block_tokens / kv_group` groups; a group holds, for
/// each kv head, K as [head_dim][kv_group] (so that lanes run over keys) and then V as
/// [kv_group][head_dim] (so that lanes run over the head dimension). With `latent_dim` there is K
/// alone, and one head of it for all query heads. A group's bytes therefore do
/// not depend on the block size, and a KV image can move between workers with different ones.
struct kv_layout {
  std::byte* data = nullptr;     ///< 64-byte aligned.
  std::size_t block_tokens = 16; ///< A multiple of `kv_group`.
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0; ///< A multiple of 16.
  dtype type = dtype::f32;  ///< f32 in `cpu-f32-v1`, bf16 (rounded once) in `cpu-bf16-v1`.
  /// Not 0: a position's values are the first so many dimensions of its key, and there are no V
  /// tiles. A multiple of 16, at most `latent_dim_max`.
  std::size_t latent_dim = 0;

  /// Width of a value.
  constexpr std::size_t value_dim() const noexcept {
    return latent_dim != 0 ? latent_dim : head_dim;
  }

  /// Bytes of the tiles of one kv head in a group.
  constexpr std::size_t head_bytes() const noexcept {
    return (latent_dim != 0 ? 1 : 2) * tile_bytes();
  }

  constexpr std::size_t group_bytes() const noexcept { return kv_heads * head_bytes(); }
  constexpr std::size_t block_bytes() const noexcept {
    return block_tokens / kv_group * group_bytes();
  }

  /// Offset in `data` of the K tile ([head_dim][kv_group]) of one kv head in the group that holds
  /// position `slot` (0 .. block_tokens) of physical block `block`. Its V tile, if any, follows it
  /// at once.
  constexpr std::size_t k_offset(std::size_t block, std::size_t slot,
                                 std::size_t kv_head) const noexcept {
    return block * block_bytes() + slot / kv_group * group_bytes() + kv_head * head_bytes();
  }

  /// Bytes of one K tile, and of one V tile ([kv_group][head_dim]).
  constexpr std::size_t tile_bytes() const noexcept { return kv_group * head_dim * size_of(type); }
};

} // namespace rollcast::kernels
