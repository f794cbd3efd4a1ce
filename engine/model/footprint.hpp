#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "kernels/kv_layout.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace rollcast {

/// Memory that a model takes, told from its shape without loading it.
struct weight_footprint {
  std::uint64_t packed = 0;     ///< `model_weights::arena_bytes` of one epoch.
  std::uint64_t checkpoint = 0; ///< Bytes of the tensors: what an update sends to each worker.
  std::uint64_t parameters = 0;
};

/// @param how      The arithmetic of the numerics profile.
/// @param type_of  The dtype of a tensor, by name. Its failure is the result's.
result<weight_footprint>
weight_footprint_of(const model_config& config, kernels::arithmetic how,
                    const std::function<result<kernels::dtype>(const std::string&)>& type_of);

/// How one layer of the model's KV cache lies in memory; `data` is null.
kernels::kv_layout kv_layout_of(const model_config& config, kernels::dtype kv_type,
                                std::uint32_t block_tokens) noexcept;

/// Bytes of one KV block over all layers. @param block_tokens  A multiple of `kernels::kv_group`.
std::uint64_t kv_block_bytes(const model_config& config, kernels::dtype kv_type,
                             std::uint32_t block_tokens) noexcept;

} // namespace rollcast
