#pragma once

#include <cstddef>

namespace rollcast {

/// What this machine can do at most, measured now: the yardstick of `bench engine`.
struct machine_rates {
  double read_bytes_per_s = 0; ///< Reading memory that no cache holds, on huge pages.
  double f32_flops_per_s = 0;  ///< Independent f32 FMAs in registers, 2 operations each.
  double bf16_flops_per_s = 0; ///< The same with vdpbf16ps where there is one, else as f32.
};

/// Measures with `threads` threads at once; takes about a second. The best of several rounds
/// counts, because neighbours on a shared machine only ever slow a round down. All zero on
/// processors other than x86-64 with AVX2, for which nobody has written the loops.
machine_rates measure_machine(std::size_t threads);

} // namespace rollcast
