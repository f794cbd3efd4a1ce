#pragma once

#include <bit>
#include <cstdint>

namespace rollcast::kernels {

/// Element types that checkpoints, packed weights and KV caches store.
enum class dtype : std::uint8_t { f32, bf16, f16 };

constexpr std::uint32_t size_of(dtype t) noexcept {
  return t == dtype::f32 ? 4 : 2;
}

/// The arithmetic of a numerics profile. A profile's bits never depend on the machine.
enum class arithmetic : std::uint8_t {
  f32,  ///< `cpu-f32-v1`: f32 inputs, one f32 FMA chain over K, ascending.
  bf16, ///< `cpu-bf16-v1`: inputs rounded to bf16, the chain of `vdpbf16ps`.
};

/// Widens bf16 exactly.
constexpr float widen_bf16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Rounds to bf16, nearest even; NaN becomes a quiet NaN. Subnormals are kept.
constexpr std::uint16_t round_bf16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Widens IEEE half precision exactly.
constexpr float widen_f16(std::uint16_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0x1f)
    return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f; // exact
  return sign != 0 ? -magnitude : magnitude;
}

} // namespace rollcast::kernels
