#pragma once

#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// Slots [begin, end) of one physical block, to the same slots of another.
struct kv_slots {
  std::uint32_t from;  ///< Physical block.
  std::uint32_t to;    ///< Another one.
  std::uint32_t begin; ///< 0 .. block_tokens.
  std::uint32_t end;   ///< Above `begin`, at most block_tokens.
};

/// Copies the K and V of `count` runs of slots, for kv heads [head_begin, head_end) of one layer.
/// @param copies  Done in their order: one may read what an earlier one has written.
/// Numerics: bytes. No other slot is read or written, whatever it holds.
/// Cost:     K of a part of a group is head_dim short runs; all else is plain copying.
void copy_kv_cpu(const kv_layout& kv, const kv_slots* copies, std::size_t count,
                 std::size_t head_begin, std::size_t head_end) noexcept;

} // namespace rollcast::kernels
