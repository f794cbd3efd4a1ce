#pragma once

#include <cstddef>

namespace rollcast::kernels {

/// Width of every f32 sum of the house. Lane `j` starts at +0 and takes elements `j`, `j + 64`,
/// `j + 128`, ... in ascending order, with a fused multiply-add where there is a product; the lanes
/// then fold 32, 16, 8, 4, 2, 1 (lane `j` += lane `j + half`). A missing element leaves its lane as
/// it is; all sums of the house have terms >= 0, so padding with +0 does exactly that.
/// 64 lanes are four AVX-512, eight AVX2 or sixteen NEON registers: enough chains for each of them.
/// Part of the numerics contract: a change here changes bits, so it needs a new profile version.
inline constexpr std::size_t reduce_lanes = 64;

} // namespace rollcast::kernels
