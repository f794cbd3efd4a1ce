#pragma once

#include "kernels/cuda/runtime.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace rollcast {

/// cuBLASLt, the GPU maker's library of matrix products, found when the program runs. It chooses
/// its order of additions by the number of rows, so nothing that is promised is computed with it:
/// it is a yardstick.
class cublaslt {
public:
  /// Looks for the library where the loader looks (LD_LIBRARY_PATH). @returns null, and why, if it
  /// is not there or does not start.
  static std::unique_ptr<cublaslt> find(std::string& why_not);
  ~cublaslt();

  /// y[rows, n] = x[rows, k] * w[n, k]^T, all bf16 and row-major in device memory, f32 inside.
  /// @returns false if the library refuses.
  bool product(const void* x, const void* w, void* y, std::size_t rows, std::size_t n,
               std::size_t k, void* workspace, std::size_t workspace_bytes,
               kernels::cuda::stream_handle stream) const;

private:
  struct calls;
  explicit cublaslt(std::unique_ptr<calls> library);
  std::unique_ptr<calls> library_;
};

} // namespace rollcast
