#pragma once

#include "engine/backend/device_weights.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "engine/model/tensor_source.hpp"
#include "kernels/cuda/gemm.hpp"
#include "kernels/cuda/runtime.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace rollcast {

/// One decoder layer in device memory. Matrices are [n, k] bf16 as a checkpoint has them, so that
/// nothing is packed and tied embeddings are there once.
struct cuda_layer {
  const float* input_norm = nullptr;             ///< [hidden]
  const float* post_norm = nullptr;              ///< [hidden]
  const float* q_norm = nullptr;                 ///< [head_dim] or null.
  const float* k_norm = nullptr;                 ///< [head_dim] or null.
  const float* qkv_bias = nullptr;               ///< [(heads + 2 * kv_heads) * head_dim] or null.
  const kernels::cuda::bf16_bits* qkv = nullptr; ///< q, k, v, one below the other.
  const kernels::cuda::bf16_bits* o = nullptr;   ///< [hidden, heads * head_dim]
  const kernels::cuda::bf16_bits* gate_up = nullptr; ///< Rows of gate and up in turn.
  const kernels::cuda::bf16_bits* down = nullptr;    ///< [hidden, intermediate]
};

/// The weights of one epoch in device memory, in one allocation.
class cuda_weights final : public device_weights {
public:
  content_hash hash() const noexcept override { return hash_; }
  std::span<const tensor_info> tensors() const noexcept override { return tensors_; }

  std::span<const cuda_layer> layers() const noexcept { return layers_; }
  const float* final_norm() const noexcept { return final_norm_; }
  /// [vocabulary, hidden], and one row more that is NaN.
  const kernels::cuda::bf16_bits* embedding() const noexcept { return embedding_; }
  const kernels::cuda::bf16_bits* lm_head() const noexcept {
    return lm_head_;
  } ///< Or the embedding.

private:
  friend class cuda_weight_loader;

  kernels::cuda::device_buffer memory_;
  std::vector<cuda_layer> layers_;
  const float* final_norm_ = nullptr;
  const kernels::cuda::bf16_bits* embedding_ = nullptr;
  const kernels::cuda::bf16_bits* lm_head_ = nullptr;
  std::vector<tensor_info> tensors_;
  content_hash hash_;
};

/// Bytes of device memory that one epoch takes.
std::uint64_t cuda_weight_bytes(const model_config& config);

/// Checks all tensors, rounds matrices to bf16 (once) and copies them to the device. May run on any
/// thread, beside whatever the device computes.
///
/// @param over  Made by the same device for the same config; null if `tensors` is complete. What
///              is not in `tensors` is copied from it within the device.
/// @returns as `backend::prepare_weights`.
result<std::shared_ptr<const cuda_weights>>
load_cuda_weights(std::uint32_t device, const model_config& config, const tensor_source& tensors,
                  const cuda_weights* over, const prepare_options& options);

} // namespace rollcast
