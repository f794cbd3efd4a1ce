#pragma once

#include "engine/backend/backend.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "kernels/accept.hpp"
#include "kernels/attention.hpp"
#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/gemm.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/kv_copy.hpp"
#include "kernels/rope.hpp"
#include "kernels/sampling.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>

namespace rollcast {

/// Sizes of the buffers of a pass.
struct cuda_buffer_sizes {
  std::size_t rows = 0;       ///< Of the largest pass, padding included.
  std::size_t logit_rows = 0; ///< Likewise.
  std::size_t positions = 0;
  std::size_t block_tokens = 0;
  kernels::cuda::attention_plan_size attention;
  std::size_t library_workspace = 0; ///< Of a library of products; 0: they are exact.
};

/// The counts that kernels read when they run, so that one graph does for any.
struct cuda_pass_counts {
  std::uint32_t items = 0;
  std::uint32_t copies = 0;
};

/// The device memory of forward passes, allocated once: no address in it ever changes, which is
/// what graphs rely on.
class cuda_buffers {
public:
  /// Device memory that it takes.
  static std::uint64_t bytes_of(const model_config& config, const cuda_buffer_sizes& sizes);
  /// Allocates on the current device, clears all of it and fills the rotary table.
  static result<cuda_buffers> make(const model_config& config, const cuda_buffer_sizes& sizes,
                                   kernels::cuda::stream_handle stream);

  // -- activations --------------------------------------------------------------
  using bf16_bits = kernels::cuda::bf16_bits;
  float* hidden = nullptr;       ///< [rows, hidden], residual.
  bf16_bits* normed = nullptr;   ///< [max(rows, logit rows), hidden]
  float* qkv = nullptr;          ///< [rows, q + k + v]
  bf16_bits* q = nullptr;        ///< [rows, heads * head_dim]
  bf16_bits* attended = nullptr; ///< [rows, heads * head_dim]
  bf16_bits* gate_up = nullptr;  ///< [rows, 2 * intermediate], if a library makes it; else empty.
  bf16_bits* gated = nullptr;    ///< [rows, intermediate]
  float* logits = nullptr;       ///< [logit rows, vocabulary]
  float* partials = nullptr;     ///< Of attention.
  // -- what stays from pass to pass -----------------------------------------------
  std::uint32_t* counters = nullptr; ///< Of attention; zero between passes.
  std::byte* workspace = nullptr;    ///< Of products; each leaves it ready.
  float* cos_sin = nullptr;          ///< [positions, head_dim]
  // -- the rows of a pass: written by one copy each from `staged` -------------------
  cuda_pass_counts* counts = nullptr;
  token_id* tokens = nullptr;                       ///< [rows]
  kernels::row_place* places = nullptr;             ///< [rows]
  std::uint32_t* logit_index = nullptr;             ///< [logit rows]
  kernels::attention_sequence* sequences = nullptr; ///< [rows]
  kernels::kv_slots* copies = nullptr;              ///< [rows]
  kernels::cuda::attention_item* items = nullptr;   ///< [attention.items]
  std::uint32_t* tables = nullptr;                  ///< [rows * blocks of a context]
  // -- of sampling and scoring -------------------------------------------------------
  // Sent by one copy from `how` on, brought back by one from `chosen` on.
  kernels::sample_params* how = nullptr;     ///< [logit rows]
  kernels::tree_span* draft_trees = nullptr; ///< [logit rows]
  token_id* draft_tokens = nullptr;          ///< [logit rows]
  std::uint32_t* draft_parents = nullptr;    ///< [logit rows]
  kernels::sampled_token* chosen = nullptr;  ///< [logit rows]
  kernels::accepted_path* paths = nullptr;   ///< [logit rows]
  std::uint32_t* path_nodes = nullptr;       ///< [logit rows]
  float* temperatures = nullptr;             ///< [logit rows]
  token_id* given = nullptr;                 ///< [logit rows]
  float* scores = nullptr;                   ///< [logit rows]

  /// The activations, as bytes: what may be anything before a pass.
  std::byte* scratch() const noexcept { return memory_.data(); }
  std::size_t scratch_bytes() const noexcept { return scratch_bytes_; }
  /// First and last byte of what is staged for a pass, from `counts` to the end of `tables`.
  std::byte* step() const noexcept { return reinterpret_cast<std::byte*>(counts); }
  std::size_t step_bytes() const noexcept { return step_bytes_; }
  /// The same of what is asked and answered, from `how` to the end of `scores`.
  std::byte* answers() const noexcept { return reinterpret_cast<std::byte*>(how); }
  std::size_t answer_bytes() const noexcept { return answer_bytes_; }

private:
  std::size_t place_all(const model_config& config, const cuda_buffer_sizes& sizes,
                        std::byte* base);

  kernels::cuda::device_buffer memory_;
  std::size_t scratch_bytes_ = 0;
  std::size_t step_bytes_ = 0;
  std::size_t answer_bytes_ = 0;
};

} // namespace rollcast
