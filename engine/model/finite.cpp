#include "engine/model/finite.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace rollcast {

namespace {

// Bits of the magnitude from which on an element is refused.
constexpr std::uint16_t bf16_limit = 0x7f80;
constexpr std::uint16_t f16_limit = 0x7c00;
constexpr std::uint32_t f32_limit = 0x7f800000;
constexpr std::uint32_t f32_rounding_limit = 0x7f7f8000; // The least f32 that rounds to infinity.

/// The block's length is a constant and its loop has no exit, so that compilers vectorise it.
template <class Bits>
bool block_is_bad(const std::byte* data, Bits limit) noexcept {
  constexpr std::size_t block = 1024;
  constexpr Bits magnitude = static_cast<Bits>(~Bits{0}) >> 1;
  Bits worst = 0;
  for (std::size_t i = 0; i < block; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    const Bits size = bits & magnitude;
    worst = size > worst ? size : worst;
  }
  return worst >= limit;
}

template <class Bits>
std::optional<std::size_t> first_bad(std::span<const std::byte> bytes, Bits limit) noexcept {
  constexpr std::size_t block = 1024;
  constexpr Bits magnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const std::size_t count = bytes.size() / sizeof(Bits);
  for (std::size_t begin = 0; begin < count; begin += block) {
    const std::size_t end = std::min(count, begin + block);
    if (end - begin == block && !block_is_bad<Bits>(bytes.data() + begin * sizeof(Bits), limit))
      continue;
    for (std::size_t i = begin; i < end; ++i) {
      Bits bits;
      std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
      if (static_cast<Bits>(bits & magnitude) >= limit)
        return i;
    }
  }
  return std::nullopt;
}

} // namespace

std::optional<std::size_t> first_non_finite(std::span<const std::byte> bytes, kernels::dtype type,
                                            bool rounds_to_bf16) noexcept {
  switch (type) {
    case kernels::dtype::bf16: return first_bad<std::uint16_t>(bytes, bf16_limit);
    case kernels::dtype::f16: return first_bad<std::uint16_t>(bytes, f16_limit);
    case kernels::dtype::f32: break;
  }
  return first_bad<std::uint32_t>(bytes, rounds_to_bf16 ? f32_rounding_limit : f32_limit);
}

float element_at(std::span<const std::byte> bytes, kernels::dtype type,
                 std::size_t index) noexcept {
  if (type == kernels::dtype::f32) {
    std::uint32_t bits;
    std::memcpy(&bits, bytes.data() + index * sizeof bits, sizeof bits);
    return std::bit_cast<float>(bits);
  }
  std::uint16_t bits;
  std::memcpy(&bits, bytes.data() + index * sizeof bits, sizeof bits);
  return type == kernels::dtype::bf16 ? kernels::widen_bf16(bits) : kernels::widen_f16(bits);
}

} // namespace rollcast
