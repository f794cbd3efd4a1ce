#pragma once

#include "kernels/types.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace rollcast {

/// A shape as errors and epoch hashes write it: "[96, 64]".
std::string shown(std::span<const std::size_t> shape);

/// A dtype as safetensors spells it: "F32", "BF16", "F16".
std::string_view name_of(kernels::dtype type) noexcept;

} // namespace rollcast
