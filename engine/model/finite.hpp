#pragma once

#include "kernels/types.hpp"

#include <cstddef>
#include <optional>
#include <span>

namespace rollcast {

/// Finds the first element that is NaN or infinite, or, with `rounds_to_bf16`, becomes infinite
/// when an f32 is rounded to bf16. `bytes` holds whole elements and may be unaligned.
/// Cost: a few bytes a cycle, so that loading stays bound by memory.
std::optional<std::size_t> first_non_finite(std::span<const std::byte> bytes, kernels::dtype type,
                                            bool rounds_to_bf16) noexcept;

/// Element `index` of such bytes, widened to f32.
float element_at(std::span<const std::byte> bytes, kernels::dtype type, std::size_t index) noexcept;

} // namespace rollcast
