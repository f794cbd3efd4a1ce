#pragma once

// Starting a kernel: one argument struct, by value, and dynamic shared memory only.

#include "kernels/cuda/launch_shape.hpp"
#include "kernels/cuda/simt.cuh"

#include <cstddef>
#include <string>

#if defined(ROLLCAST_SIMT_HOST)
#include "kernels/cuda/emulator.hpp"
#endif

namespace rollcast::kernels::cuda {

/// Bytes without a fault in the caller's shapes; the launchers' checks all end here.
[[nodiscard]] inline tl::unexpected<device_error> refused(std::string why) {
  return tl::unexpected(device_error{-2, std::move(why)});
}

#if defined(ROLLCAST_SIMT_HOST)

template <class Args>
device_status launch(const char* name, void (*kernel)(Args), const launch_shape& shape,
                     const Args& args, stream_handle stream) {
  return simt::host::submit(
    stream, [=] { return simt::host::run_grid(name, shape, [&] { kernel(args); }); });
}

#else

/// @pre every launch of one kernel asks for the same most of shared memory, or less.
template <class Args>
device_status launch(const char* name, void (*kernel)(Args), const launch_shape& shape,
                     const Args& args, stream_handle stream) {
  const auto* const code = reinterpret_cast<const void*>(kernel);
  cudaError_t said = cudaSuccess;
  if (shape.shared_bytes > 48 * 1024)
    said = cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shape.shared_bytes));
  void* pointers[] = {const_cast<Args*>(&args)};
  if (said == cudaSuccess)
    said =
      cudaLaunchKernel(code, dim3(shape.grid[0], shape.grid[1], shape.grid[2]), dim3(shape.threads),
                       pointers, shape.shared_bytes, reinterpret_cast<cudaStream_t>(stream));
  if (said == cudaSuccess)
    return {};
  return tl::unexpected(device_error{static_cast<int>(said), std::string{"kernel "} + name + ": "
                                                               + cudaGetErrorString(said)});
}

#endif

} // namespace rollcast::kernels::cuda
