#pragma once

#include "engine/backend/cuda_backend.hpp"
#include "engine/backend/cuda_buffers.hpp"
#include "engine/backend/cuda_kv.hpp"
#include "engine/backend/cuda_weights.hpp"
#include "engine/backend/product_library.hpp"

#include <cstdint>
#include <memory>
#include <optional>

namespace rollcast {

/// Staged rows: two buffers, so that a pass can be made ready while the one before runs.
struct cuda_staging {
  kernels::cuda::pinned_buffer memory;      ///< Laid out as `cuda_buffers::step`.
  std::optional<kernels::cuda::event> sent; ///< After the copies out of it.
  bool used = false;
};

/// What a device is made of, in the order in which it is made.
struct cuda_parts {
  std::uint32_t device = 0;
  kernels::cuda::stream stream;
  std::shared_ptr<const product_library> products; ///< Null: products are exact.
  std::shared_ptr<const cuda_weights> weights;
  device_shape shape = {};
  cuda_buffer_sizes sizes = {};
  cuda_buffers buffers = {};
  cuda_kv kv = {};
  cuda_staging stages[2] = {};
  kernels::cuda::pinned_buffer answers = {}; ///< Laid out as `cuda_buffers::answers`.
};

/// Makes them. @returns as `make_cuda_backend`.
result<cuda_parts> make_cuda_parts(const model_config& config, const tensor_source& tensors,
                                   const numerics_profile& profile,
                                   const cuda_backend_options& options,
                                   const prepare_options& prepare);

/// Fails with `bad_config` and one line for a GPU that the kernels cannot run on.
result<void> check_gpu(std::uint32_t number, const kernels::cuda::device_info& info);

/// What is left to one of `sharers` processes of a GPU's memory beside the `own_bytes` that it has.
std::uint64_t cuda_memory_share(std::uint64_t memory_bytes, std::uint32_t sharers,
                                std::uint64_t own_bytes) noexcept;

/// KV blocks that `kv_blocks` 0 means, from what is free beside the first weights and the buffers.
/// Fails with `bad_config` and the numbers if not even one full context fits.
/// @param weight_bytes  Of the next epoch, which must find room.
result<std::uint32_t> cuda_kv_blocks(const model_config& config, const device_shape& shape,
                                     std::uint32_t batch_max, std::uint64_t free_bytes,
                                     std::uint64_t weight_bytes);

} // namespace rollcast
