#pragma once

#include "engine/model/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast {

/// What the names of a draft model's tensors begin with in an update. A device whose worker does
/// not draft with a model leaves them out.
inline constexpr std::string_view draft_prefix = "draft.";

/// What a checkpoint tensor is for.
enum class tensor_role : std::uint8_t {
  embedding,
  final_norm,
  lm_head,
  input_norm,
  post_norm,
  q_norm,
  k_norm,
  q,
  k,
  v,
  o,
  gate,
  up,
  down,
  q_bias,
  k_bias,
  v_bias,
  q_a,
  q_a_norm,
  q_b,
  kv_a,
  kv_a_norm,
  kv_b,
  router,
  choice_bias,
  shared_gate,
  shared_up,
  shared_down,
  expert_gate,
  expert_up,
  expert_down,
  fuse,        ///< Of a drafter: the states, or state and token, to the residual stream.
  embed_norm,  ///< Of a drafter: of the token's embedding.
  hidden_norm, ///< Of a drafter: of the state.
};

struct planned_tensor {
  std::string name;
  std::vector<std::size_t> shape; ///< Linear weights are [out, in].
  tensor_role role;
  std::size_t layer = 0;  ///< Meaningless for embedding, final_norm and lm_head.
  std::size_t expert = 0; ///< Of the layer, for the tensors of an expert.
};

/// Every tensor that a model of this shape needs, under its Hugging Face name, layer by layer. The
/// head is not among them when it is the embedding; of a drafter's embedding and head only its own.
std::vector<planned_tensor> plan_tensors(const model_config& config);

/// True for tensors that published checkpoints hold and the engine does not need: the
/// `rotary_emb.inv_freq` buffers of old files, `lm_head.weight` when the embedding is the head, and
/// MTP layers: MiMo's `model.mtp_layers.*`, or those behind the last layer. Of a drafter: the
/// tables of its vocabulary, which are read apart, and a MTP layer's copies of the target's
/// embedding and head.
bool is_known_extra(const model_config& config, std::string_view name);

} // namespace rollcast
