#pragma once

#include "engine/backend/thread_pool.hpp"
#include "engine/base/aligned_buffer.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "engine/model/weights.hpp"
#include "kernels/latent.hpp"
#include "kernels/types.hpp"

#include <cstddef>

namespace rollcast {

/// What surrounds attention over a latent on the CPU, with its buffers for `rows_max` rows,
/// allocated once.
///
/// There is one form for prefill, decode, verification and scoring, the absorbed one: queries are
/// taken into the latent's space, attention works there on what the cache holds, and its result is
/// taken to the value heads. The other form would round differently.
class cpu_latent {
public:
  /// Empty, and never run, for a model without a latent. Fails as `aligned_buffer::make`.
  static result<cpu_latent> make(const model_config& config, kernels::arithmetic how,
                                 std::size_t rows_max);

  /// Query heads are divided into so many items for each row (`attention_args::shares`).
  std::size_t shares() const noexcept { return shares_; }

  /// From the first projection's rows to queries in the latent's space and keys in the cache.
  /// @param qkv  [rows, qkv_width()].
  void project(thread_pool& pool, const layer_weights& layer, float* qkv, std::size_t rows,
               const float* cos_sin, const kernels::row_place* places,
               const kernels::kv_layout& kv);

  /// From attention's rows to value heads. @param out  [rows, attended_width()].
  void expand(thread_pool& pool, const layer_weights& layer, std::size_t rows, float* out);

  float* queries() const noexcept { return at<float>(queries_); } ///< [rows, heads * head_dim]
  float* mixed() const noexcept { return at<float>(mixed_); }     ///< [rows, heads * rank]

private:
  template <class T>
  T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }
  void each_head(thread_pool& pool, const kernels::packed_matrix& w, const float* x,
                 std::size_t x_stride, std::size_t x_step, float* y, std::size_t y_stride,
                 std::size_t y_step, std::size_t rows);

  std::size_t heads_ = 0;
  std::size_t shares_ = 1;
  latent_config config_;
  kernels::arithmetic how_ = kernels::arithmetic::f32;
  aligned_buffer memory_;
  std::size_t q_ = 0; // Offsets in `memory_` from here on.
  std::size_t queries_ = 0;
  std::size_t mixed_ = 0;
  std::size_t packed_ = 0;
};

} // namespace rollcast
