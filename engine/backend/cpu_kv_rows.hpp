#pragma once

#include "kernels/kv_layout.hpp"
#include "kernels/rope.hpp"

#include <span>

namespace rollcast {

/// Copies K (`keys`) or V of some positions out of one layer's cache, widened exactly to f32.
/// @param out  [places, kv_heads * head_dim]. For observers: nothing about it is fast.
void read_kv_rows(const kernels::kv_layout& kv, std::span<const kernels::row_place> places,
                  bool keys, float* out) noexcept;

} // namespace rollcast
