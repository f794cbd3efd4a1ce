#pragma once

#include "engine/base/error.hpp"
#include "kernels/cuda/runtime.hpp"

#include <unistd.h>

#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>

namespace rollcast {

/// What `errc` and who asked, for a failure of the device.
template <class T>
[[nodiscard]] tl::unexpected<error> device_failed(const kernels::cuda::device_result<T>& failed,
                                                  const std::string& what,
                                                  errc code = errc::bad_config) {
  return fail(code, what + ": " + failed.error().what);
}

/// Exit code of a process whose device failed in the middle of work.
inline constexpr int exit_device_failed = 5;

/// Ends the process: after a fault of the device no call to it can be believed, and whoever
/// computes with it would hang or lie. One line first, without a word to atexit handlers, which may
/// call the device.
[[noreturn]] inline void end_on_device_fault(const kernels::cuda::device_error& fault) {
  std::fprintf(stderr, "rollcast: the GPU failed in the middle of work: %s (code %d)\n",
               one_line(fault.what).c_str(), fault.code);
  ::_exit(exit_device_failed);
}

/// Returns what the device made, or ends the process.
template <class T>
T must(kernels::cuda::device_result<T>&& got) {
  if (!got) [[unlikely]]
    end_on_device_fault(got.error());
  if constexpr (!std::is_void_v<T>)
    return std::move(*got);
}

} // namespace rollcast
