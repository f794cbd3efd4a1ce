#pragma once

#include "engine/backend/thread_pool.hpp"
#include "engine/base/aligned_buffer.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "engine/model/weights.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace rollcast {

/// The FFN of sparse layers on the CPU, with its buffers for `rows_max` rows, allocated once.
///
/// Rows are gathered by expert, each expert multiplies its rows together, and every row adds up its
/// own slots in their order. The product gives a row the same bits in any company, so it does not
/// matter how many rows share an expert, or which.
class cpu_experts {
public:
  /// Empty, and never run, for a model without experts. Fails as `aligned_buffer::make`.
  static result<cpu_experts> make(const model_config& config, kernels::arithmetic how,
                                  std::size_t rows_max);

  /// y[r] += what the experts of row r make of x[r]. Allocates nothing.
  /// @param x  [rows, hidden], normed. @param y  [rows, hidden], the residual stream.
  void run(thread_pool& pool, const layer_weights& layer, const float* x, std::size_t rows,
           float* y);

  /// Writes the ids of the experts that `run` last sent its rows to, in the order of their slots.
  /// @param to        [rows, per_token] of `id_bytes` bytes, the rows `stride` bytes apart.
  /// @param id_bytes  1 or 2; enough for every id.
  void write_ids(std::size_t rows, std::byte* to, std::size_t stride,
                 std::uint32_t id_bytes) const noexcept;

private:
  /// An expert that has rows in this pass.
  struct share {
    std::uint32_t expert;
    std::uint32_t first;   ///< Of its rows among all places.
    std::uint32_t rows;    ///< At least 1.
    std::size_t wide_at;   ///< Bytes into `packed()` of its rows of width hidden.
    std::size_t narrow_at; ///< The same of its rows of the expert's width.
  };

  void route(thread_pool& pool, const layer_weights& layer, const float* x, std::size_t rows);
  void plan(std::size_t rows);
  void multiply(thread_pool& pool, const layer_weights& layer, bool down);
  void run_shared(thread_pool& pool, const layer_weights& layer, const float* x, std::size_t rows);

  template <class T>
  T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }
  std::span<share> shares() const noexcept { return {at<share>(shares_), active_}; }
  float* logits() const noexcept { return at<float>(logits_); }           ///< [rows, experts]
  float* weights() const noexcept { return at<float>(weights_); }         ///< [rows, per_token]
  std::uint32_t* ids() const noexcept { return at<std::uint32_t>(ids_); } ///< [rows, per_token]
  /// [rows, per_token]: the place of each slot; places of an expert follow one another.
  std::uint32_t* places() const noexcept { return at<std::uint32_t>(places_); }
  std::uint32_t* row_at() const noexcept { return at<std::uint32_t>(row_at_); } ///< [places]
  std::uint32_t* next() const noexcept { return at<std::uint32_t>(next_); }     ///< [experts]
  float* gate_up() const noexcept { return at<float>(gate_up_); } ///< [places, 2 * intermediate]
  float* gated() const noexcept { return at<float>(gated_); }     ///< [places, intermediate]
  float* outputs() const noexcept { return at<float>(outputs_); } ///< [places, hidden]
  float* shared_gate_up() const noexcept { return at<float>(shared_gate_up_); } ///< [rows, 2 * s]
  float* shared_gated() const noexcept { return at<float>(shared_gated_); }     ///< [rows, s]
  float* shared_out() const noexcept { return at<float>(shared_out_); }         ///< [rows, hidden]
  std::byte* packed() const noexcept { return at<std::byte>(packed_); }

  expert_config config_;
  std::size_t hidden_ = 0;
  kernels::arithmetic how_ = kernels::arithmetic::f32;
  aligned_buffer memory_;
  std::size_t active_ = 0; ///< Shares of this pass.
  std::size_t shares_ = 0; // Offsets in `memory_` from here on.
  std::size_t logits_ = 0;
  std::size_t weights_ = 0;
  std::size_t ids_ = 0;
  std::size_t places_ = 0;
  std::size_t row_at_ = 0;
  std::size_t next_ = 0;
  std::size_t gate_up_ = 0;
  std::size_t gated_ = 0;
  std::size_t outputs_ = 0;
  std::size_t shared_gate_up_ = 0;
  std::size_t shared_gated_ = 0;
  std::size_t shared_out_ = 0;
  std::size_t packed_ = 0;
};

} // namespace rollcast
