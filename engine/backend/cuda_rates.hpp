#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rollcast {

/// What a GPU can do at most, measured now: the yardstick of `bench engine --device cuda`.
struct gpu_rates {
  std::string name;             ///< As the driver says it.
  double copy_bytes_per_s = 0;  ///< Copying within its memory; bytes read and bytes written.
  double bf16_flops_per_s = 0;  ///< cuBLASLt's product of two matrices of 8192; 0 without it.
  std::string without_cublaslt; ///< Why there is no such figure; "": there is one.
};

/// Measures one GPU, in about a second; the best of several rounds counts. cuBLASLt, the maker's
/// library of matrix products, is no part of the program: it is looked for when this runs.
result<gpu_rates> measure_gpu(std::uint32_t device);

/// Time of a decoder layer's four products with so many rows: by the exact kernels and by cuBLASLt,
/// which keeps no promise about bits. What they differ in is the price of exactness.
struct product_times {
  std::uint32_t rows = 0;
  double exact_s = 0;
  double fast_s = 0; ///< 0 without cuBLASLt.
};

/// Measures products of a model's shape on one GPU, its weights cold in every round, as in a pass.
result<std::vector<product_times>> measure_products(std::uint32_t device,
                                                    const model_config& config,
                                                    std::span<const std::uint32_t> rows);

} // namespace rollcast
