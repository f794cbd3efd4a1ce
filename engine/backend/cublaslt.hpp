#pragma once

#include "engine/backend/product_library.hpp"

#include <cstddef>
#include <memory>
#include <string>

namespace rollcast {

/// cuBLASLt, the GPU maker's library of matrix products, found when the program runs. It chooses
/// its order of additions by the number of rows, so nothing that is promised is computed with it:
/// it is a yardstick.
class cublaslt final : public product_library {
public:
  /// Looks for the library where the loader looks (LD_LIBRARY_PATH), for the current device.
  /// @returns null, and why, if it is not there or does not start.
  static std::unique_ptr<cublaslt> find(std::string& why_not);
  ~cublaslt() override;

  std::size_t workspace_bytes() const noexcept override { return std::size_t{64} << 20; }
  kernels::cuda::device_status multiply(const library_product& product, std::byte* workspace,
                                        kernels::cuda::stream_handle stream) const override;

private:
  struct calls;
  class recipe;
  explicit cublaslt(std::unique_ptr<calls> library);
  std::unique_ptr<calls> library_;
};

} // namespace rollcast
