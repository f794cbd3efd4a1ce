#pragma once

#include "engine/base/error.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace rollcast::capi {

/// Refuses machines on which no kernel may run.
inline result<void> check_machine() {
  if (kernels::instruction_sets().empty())
    return fail(errc::unsupported_numerics,
                "this processor has no fused multiply-add: AVX2, AVX-512 or NEON is needed");
  return {};
}

/// Refuses matrices that are not where the kernels can read them.
inline result<void> check_aligned(const void* data, const char* name) {
  if (data == nullptr || reinterpret_cast<std::uintptr_t>(data) % 64 != 0)
    return fail(errc::bad_config,
                std::string(name) + " is " + (data == nullptr ? "NULL" : "not 64-byte aligned"));
  return {};
}

/// The element type that a number of `rollcast_dtype` means.
inline result<kernels::dtype> dtype_of(int number, bool packed) {
  if (number < 0 || number > (packed ? 1 : 2))
    return fail(errc::bad_config, "dtype " + std::to_string(number)
                                    + (packed ? ": packed weights are F32 (0) or BF16 (1)"
                                              : ": weights are F32 (0), BF16 (1) or F16 (2)"));
  return static_cast<kernels::dtype>(number);
}

} // namespace rollcast::capi
