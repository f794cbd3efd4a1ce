#pragma once

#include "engine/backend/backend.hpp"
#include "engine/backend/thread_pool.hpp"
#include "engine/base/aligned_buffer.hpp"
#include "engine/base/error.hpp"
#include "engine/model/weights.hpp"
#include "kernels/gemm.hpp"

#include <cstddef>
#include <span>

namespace rollcast {

/// How the rows of a drafter's model begin on the CPU: a token's embedding and a state are made
/// into the residual stream. With its buffers for `rows_max` rows, allocated once.
class cpu_draft_input {
public:
  /// Empty, and never run, for a model that is no drafter. Fails as `aligned_buffer::make`.
  static result<cpu_draft_input> make(const model_config& config, kernels::arithmetic how,
                                      std::size_t rows_max);

  /// Fills the residual stream of the rows from their tokens and states (`forward_rows::taken`).
  /// @param embedding  [target vocabulary, hidden]. @param stream  [rows, hidden].
  void fuse(thread_pool& pool, const model_weights& weights, const tensor_view& embedding,
            const forward_rows& rows, float* stream);

  /// What an EAGLE-3 layer's first projection takes in, packed: the normed embedding, and beside it
  /// the normed residual stream.
  kernels::packed_rows first_input(thread_pool& pool, const model_weights& weights,
                                   const float* stream, std::size_t rows);

private:
  template <class T>
  T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }
  void norm(thread_pool& pool, const float* x, std::span<const float> weight, float* y,
            std::size_t rows);

  std::size_t hidden_ = 0;
  float eps_ = 0;
  draft_config config_;
  kernels::arithmetic how_ = kernels::arithmetic::f32;
  aligned_buffer memory_;
  std::size_t embedded_ = 0; // Offsets in `memory_` from here on: [rows, hidden],
  std::size_t both_ = 0;     // [rows, 2 * hidden],
  std::size_t packed_ = 0;   // and packed rows of the widest of what is multiplied.
};

} // namespace rollcast
