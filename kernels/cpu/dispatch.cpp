#include "kernels/dispatch.hpp"

#include "kernels/cpu/gemm_kernels.hpp"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#if HWY_ARCH_X86
#include <cpuid.h>
#endif

namespace rollcast::kernels {
namespace {

struct instruction_set {
  std::string_view name;
  std::int64_t target; ///< Highway's.
  bool bf16_instruction;
};

/// All that the kernels are compiled for, best first.
constexpr std::array known {
#if HWY_ARCH_X86
  instruction_set{"avx512-bf16", HWY_AVX3, true}, instruction_set{"avx512", HWY_AVX3, false},
    instruction_set{"avx2", HWY_AVX2, false},
#else
  instruction_set{"neon", HWY_NEON, false},
#endif
};

bool machine_has_bf16_instruction() noexcept {
#if HWY_ARCH_X86
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned avx512_bf16 = 1u << 5; // leaf 7, subleaf 1, EAX
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & avx512_bf16) != 0;
#else
  return false;
#endif
}

struct machine {
  std::array<std::string_view, known.size()> names{};
  std::array<const instruction_set*, known.size()> sets{};
  std::size_t count = 0;

  machine() noexcept {
    const std::int64_t targets = hwy::SupportedTargets(); // asks the OS for AVX-512 state, too
    const bool bf16 = machine_has_bf16_instruction();
    for (const instruction_set& set : known) {
      if ((targets & set.target) == 0 || (set.bf16_instruction && !bf16))
        continue;
      names[count] = set.name;
      sets[count++] = &set;
    }
  }
};

const machine& this_machine() noexcept {
  static const machine found;
  return found;
}

/// 0: not decided yet, 1: without, 2: with.
std::atomic<int> bf16_choice{0};

} // namespace

std::span<const std::string_view> instruction_sets() noexcept {
  const machine& found = this_machine();
  return {found.names.data(), found.count};
}

bool use_instruction_set(std::string_view name) noexcept {
  const machine& found = this_machine();
  for (std::size_t i = 0; i < found.count; ++i) {
    if (!name.empty() && found.names[i] != name)
      continue;
    hwy::SetSupportedTargetsForTest(found.sets[i]->target);
    hwy::GetChosenTarget().Update(found.sets[i]->target);
    bf16_choice = found.sets[i]->bf16_instruction ? 2 : 1;
    return true;
  }
  return false;
}

bool detail::has_bf16_instruction() noexcept {
  const int choice = bf16_choice.load(std::memory_order_relaxed);
  if (choice != 0)
    return choice == 2;
  const machine& found = this_machine();
  const bool has = found.count != 0 && found.sets[0]->bf16_instruction;
  bf16_choice = has ? 2 : 1;
  return has;
}

} // namespace rollcast::kernels
