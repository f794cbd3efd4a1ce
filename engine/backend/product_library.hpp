#pragma once

#include "kernels/cuda/gemm.hpp"
#include "kernels/cuda/runtime.hpp"

#include <cstddef>

namespace rollcast {

/// y[m, n] = sum_k x[m, k] * w[n, k]  (+ bias[n])  (+ what y held)
///
/// Shapes: `x` is [rows, k] and `w` [n, k], bf16; `y` is [rows, n]; all row-major without gaps, in
///         device memory.
struct library_product {
  const kernels::cuda::bf16_bits* x = nullptr;
  const kernels::cuda::bf16_bits* w = nullptr;
  void* y = nullptr;
  std::size_t rows = 0;
  std::size_t n = 0;
  std::size_t k = 0;
  kernels::cuda::gemm_output output = kernels::cuda::gemm_output::f32;
  const float* bias = nullptr; ///< [n] or null; f32 output only.
  bool add = false;            ///< To what `y` holds; f32 output only.
};

/// Products by a library that chooses its order of additions itself: what a profile that is not
/// exact computes with.
class product_library {
public:
  virtual ~product_library() = default;

  /// Bytes of device memory that `multiply` takes; products on one stream share them.
  virtual std::size_t workspace_bytes() const noexcept = 0;

  /// Queues a product; it can be captured. Sums are f32. Fails with one line if the library
  /// refuses.
  virtual kernels::cuda::device_status multiply(const library_product& product,
                                                std::byte* workspace,
                                                kernels::cuda::stream_handle stream) const = 0;
};

} // namespace rollcast
