#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/model/config.hpp"
#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_source.hpp"
#include "engine/model/weight_arena.hpp"
#include "kernels/gemm.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <memory>
#include <span>
#include <stop_token>
#include <vector>

namespace rollcast {

/// One expert of a sparse layer.
struct expert_weights {
  kernels::packed_matrix gate_up; ///< n = 2 * experts.intermediate, k = hidden; gate, then up.
  kernels::packed_matrix down;    ///< n = hidden, k = experts.intermediate.
};

/// One decoder layer, as the forward pass reads it. Matrices are packed and lie in the arena of the
/// `model_weights`; vectors are widened to f32.
struct layer_weights {
  std::vector<float> input_norm; ///< [hidden].
  std::vector<float> post_norm;  ///< [hidden], before the FFN.
  std::vector<float> q_norm;     ///< [head_dim], or empty without `qk_norm`.
  std::vector<float> k_norm;     ///< [head_dim], or empty without `qk_norm`.
  std::vector<float> qkv_bias;   ///< [(heads + 2 * kv_heads) * head_dim], or empty.
  /// n = qkv_width(), k = hidden: q, k, v; with a latent q (or what q is made of), latent, key.
  kernels::packed_matrix qkv;
  kernels::packed_matrix o; ///< n = hidden, k = attended_width().
  // With a latent alone.
  std::vector<float> q_a_norm;  ///< [latent.q_rank], or empty.
  std::vector<float> kv_a_norm; ///< [latent.rank]
  kernels::packed_matrix q_b;   ///< n = heads * (nope + rope), k = q_rank, if there is one.
  /// n = heads * rank, k = nope: head by head, plain parts of queries into the latent's space.
  kernels::packed_matrix absorb;
  kernels::packed_matrix expand; ///< n = heads * value, k = rank: head by head, latents to values.
  // A dense layer has these two and a sparse one those below; what a layer lacks has n = 0.
  kernels::packed_matrix gate_up; ///< n = 2 * intermediate, k = hidden; gate, then up.
  kernels::packed_matrix down;    ///< n = hidden, k = intermediate.
  kernels::packed_matrix router;  ///< n = experts.count, k = hidden; exact in either arithmetic.
  std::vector<float> choice_bias; ///< [experts.count], or empty.
  kernels::packed_matrix shared_gate_up; ///< As `gate_up`, of the shared experts' width, if any.
  kernels::packed_matrix shared_down;
  std::vector<expert_weights> experts;
};

/// What stands before the layer of a drafter.
struct draft_weights {
  /// n = hidden; EAGLE-3: k = the width of the target's states; MTP: k = 2 * hidden.
  kernels::packed_matrix fuse;
  std::vector<float> embed_norm;  ///< [hidden], of MTP.
  std::vector<float> hidden_norm; ///< [hidden]
};

struct load_options {
  bool allow_non_finite = false; ///< Load NaN and infinities instead of refusing them.
  std::size_t threads = 2;       ///< Speed only; results are identical.
  std::stop_token stop = {};     ///< Nobody wants them any more; looked at while loading.
};

/// The weights of one epoch: immutable, in memory once, shared by whoever computes with them.
class model_weights {
public:
  /// Checks and packs all tensors of a model. In the f32 arithmetic bf16 matrices stay bf16 and f16
  /// and f32 ones become f32; in the bf16 arithmetic all become bf16 (rounded once), but routers.
  ///
  /// @param source  Nothing of it is needed afterwards.
  /// @returns `bad_checkpoint` with one line that names: the missing and unknown tensors (up to
  ///          five of each, and how many); a tensor whose shape is not what the config says, or
  ///          whose dtype is not BF16, F16 or F32; the first element that is not finite (or becomes
  ///          infinite when rounded to bf16), by tensor, index and value; a `lm_head.weight` that
  ///          differs from the embedding although the config ties them. as `aligned_buffer::make`
  ///          without memory; `cancelled` once `options.stop` says so.
  static result<std::shared_ptr<const model_weights>> load(const model_config& config,
                                                           const tensor_source& source,
                                                           kernels::arithmetic how,
                                                           const load_options& options = {});

  /// Loads what `changes` holds, and takes every other tensor from `base`, with its config and
  /// arithmetic. The result is, byte for byte, that of loading all of it anew. Reads `base` only,
  /// so that a device may compute with it meanwhile.
  ///
  /// @returns as `load` for what is in `changes`; `bad_checkpoint` also for a tensor whose dtype is
  ///          not that of the base's, and for changes without any tensor of the model.
  static result<std::shared_ptr<const model_weights>> load_over(const model_weights& base,
                                                                const tensor_source& changes,
                                                                const load_options& options = {});

  const model_config& config() const noexcept { return config_; }
  kernels::arithmetic arithmetic() const noexcept { return arithmetic_; }

  std::span<const layer_weights> layers() const noexcept { return layers_; }

  /// [vocabulary, hidden], row-major, in the checkpoint's type; widen rows on use
  /// (`kernels::widen_row_cpu`). The bytes lie in the arena, 64-byte aligned. Empty of a drafter
  /// that takes its target's.
  const tensor_view& embedding() const noexcept { return embedding_; }

  /// [hidden].
  std::span<const float> final_norm() const noexcept { return final_norm_; }

  /// n = vocabulary, k = hidden; packed from the embedding when the config ties them. n = 0 of a
  /// drafter that takes its target's.
  const kernels::packed_matrix& lm_head() const noexcept { return lm_head_; }

  /// Of a drafter alone.
  const draft_weights& draft() const noexcept { return draft_; }

  /// Hash of the content, `epoch_hash_of(tensors())`: of name, dtype, shape and bytes of every
  /// used tensor, in name order. The same for any split into files, any arithmetic and any number
  /// of threads.
  content_hash hash() const noexcept { return hash_; }

  /// Every tensor by content, in name order.
  std::span<const tensor_info> tensors() const noexcept { return tensors_; }

  /// Bytes of packed matrices and embedding.
  std::size_t arena_bytes() const noexcept { return arena_.size(); }

private:
  friend class weight_loader;

  model_weights() = default;

  model_config config_;
  kernels::arithmetic arithmetic_ = kernels::arithmetic::f32;
  weight_arena arena_;
  std::vector<layer_weights> layers_;
  std::vector<float> final_norm_;
  kernels::packed_matrix lm_head_;
  draft_weights draft_;
  tensor_view embedding_;
  std::vector<tensor_info> tensors_;
  content_hash hash_;
};

} // namespace rollcast
