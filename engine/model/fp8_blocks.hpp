#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rollcast {

/// Rows and columns that share a scale.
inline constexpr std::size_t fp8_block = 128;

/// The value of an FP8 number of format e4m3 without infinities ("e4m3fn"), exactly. 0x7f and 0xff
/// are NaN.
float widen_e4m3(std::uint8_t bits) noexcept;

/// Widens a matrix [rows, columns] of e4m3 to bf16: each element times its block's scale, a product
/// in f32, rounded to nearest even. These are the weights that DeepSeek's own converter writes
/// (inference/fp8_cast_bf16.py), bit for bit.
/// @param scales  f32 [ceil(rows / 128), ceil(columns / 128)], little-endian, perhaps not aligned.
/// @pre sizes agree.
std::vector<std::byte> widen_fp8_blocks(std::span<const std::byte> weights, std::size_t rows,
                                        std::size_t columns, std::span<const std::byte> scales);

} // namespace rollcast
