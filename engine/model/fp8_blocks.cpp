#include "engine/model/fp8_blocks.hpp"

#include "kernels/types.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace rollcast {

float widen_e4m3(std::uint8_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24;
  const std::uint32_t exponent = (bits >> 3) & 0xfu;
  const std::uint32_t fraction = bits & 0x7u;
  if ((bits & 0x7fu) == 0x7fu)
    return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (fraction << 20));
  const float magnitude = static_cast<float>(fraction) * 0x1p-9f; // exact
  return sign != 0 ? -magnitude : magnitude;
}

std::vector<std::byte> widen_fp8_blocks(std::span<const std::byte> weights, std::size_t rows,
                                        std::size_t columns, std::span<const std::byte> scales) {
  std::array<float, 256> values;
  for (std::size_t bits = 0; bits < values.size(); ++bits)
    values[bits] = widen_e4m3(static_cast<std::uint8_t>(bits));
  const std::size_t across = (columns + fp8_block - 1) / fp8_block;
  std::vector<std::byte> out(rows * columns * sizeof(std::uint16_t));
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t begin = 0; begin < columns; begin += fp8_block) {
      float scale = 0;
      std::memcpy(&scale, &scales[(row / fp8_block * across + begin / fp8_block) * sizeof scale],
                  sizeof scale);
      for (std::size_t i = row * columns + begin,
                       end = row * columns + std::min(columns, begin + fp8_block);
           i < end; ++i) {
        const std::uint16_t wide =
          kernels::round_bf16(values[std::to_integer<std::uint8_t>(weights[i])] * scale);
        std::memcpy(&out[i * sizeof wide], &wide, sizeof wide);
      }
    }
  return out;
}

} // namespace rollcast
