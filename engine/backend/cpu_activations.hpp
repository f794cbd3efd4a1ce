#pragma once

#include "engine/backend/backend.hpp"
#include "engine/base/aligned_buffer.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "kernels/attention.hpp"

#include <cstddef>
#include <memory>

namespace rollcast {

/// Every buffer of a forward pass on the CPU, allocated once for `rows_max` rows.
class cpu_activations {
public:
  static result<cpu_activations> make(const model_config& config, kernels::arithmetic arithmetic,
                                      const device_shape& shape, std::size_t threads);

  float* hidden() const noexcept { return at<float>(hidden_); }     ///< [rows, hidden], residual.
  float* normed() const noexcept { return at<float>(normed_); }     ///< [rows, hidden]
  float* qkv() const noexcept { return at<float>(qkv_); }           ///< [rows, qkv_width()]
  float* attended() const noexcept { return at<float>(attended_); } ///< [rows, attended_width()]
  float* gate_up() const noexcept { return at<float>(gate_up_); }   ///< [rows, 2 * intermediate]
  float* gated() const noexcept { return at<float>(gated_); }       ///< [rows, intermediate]
  float* gathered() const noexcept { return at<float>(gathered_); } ///< [logit rows, hidden]
  float* logits() const noexcept { return at<float>(logits_); }     ///< [logit rows, vocabulary]
  float* cos_sin() const noexcept { return at<float>(cos_sin_); }   ///< [positions, rope.head_dim]
  /// Packed rows of the widest GEMM input.
  std::byte* packed() const noexcept { return at<std::byte>(packed_); }
  /// Scratch of one thread for sampling.
  std::byte* sample_scratch(std::size_t thread) const noexcept {
    return at<std::byte>(scratch_) + thread * scratch_bytes_;
  }
  /// The attention plan.
  kernels::attention_item* items() const noexcept { return items_.get(); }

private:
  template <class T>
  T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }

  aligned_buffer memory_;
  std::unique_ptr<kernels::attention_item[]> items_;
  std::size_t hidden_ = 0;
  std::size_t normed_ = 0;
  std::size_t qkv_ = 0;
  std::size_t attended_ = 0;
  std::size_t gate_up_ = 0;
  std::size_t gated_ = 0;
  std::size_t gathered_ = 0;
  std::size_t logits_ = 0;
  std::size_t cos_sin_ = 0;
  std::size_t packed_ = 0;
  std::size_t scratch_ = 0;
  std::size_t scratch_bytes_ = 0;
};

} // namespace rollcast
