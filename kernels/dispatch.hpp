#pragma once

#include <span>
#include <string_view>

namespace rollcast::kernels {

/// Instruction sets the CPU kernels were compiled for and this machine can run, best first:
/// "avx512-bf16", "avx512", "avx2", "neon". Every one gives the same bits. Empty on a machine
/// without fused multiply-add, where no kernel may run: the caller says so and stops.
std::span<const std::string_view> instruction_sets() noexcept;

/// Forces one of `instruction_sets()` for the whole process ("" = best). For tests and benchmarks;
/// call it while no kernel runs. @returns false, and changes nothing, if this machine cannot run
/// it.
bool use_instruction_set(std::string_view name) noexcept;

} // namespace rollcast::kernels
