#include "engine/model/tensor_plan.hpp"

#include <utility>

namespace rollcast {

namespace {

/// What the names of a layer's tensors begin with.
std::string prefix_of(const model_config& config, std::size_t layer) {
  return config.draft.kind != draft_kind::none ? config.draft.layer_prefix
                                               : "model.layers." + std::to_string(layer) + ".";
}

/// The FFN of one layer: one for all tokens, or a router and its experts.
void plan_ffn(const model_config& config, std::size_t layer, std::vector<planned_tensor>& out) {
  const std::string prefix = prefix_of(config, layer) + "mlp.";
  const std::size_t hidden = config.hidden;
  const auto add = [&](const std::string& name, std::size_t rows, std::size_t columns,
                       tensor_role role, std::size_t expert = 0) {
    out.push_back({prefix + name + ".weight", {rows, columns}, role, layer, expert});
  };
  if (!config.is_sparse(layer)) {
    add("gate_proj", config.intermediate, hidden, tensor_role::gate);
    add("up_proj", config.intermediate, hidden, tensor_role::up);
    add("down_proj", hidden, config.intermediate, tensor_role::down);
    return;
  }
  const std::size_t inner = config.experts.intermediate;
  add("gate", config.experts.count, hidden, tensor_role::router);
  if (config.experts.choice_bias)
    out.push_back({prefix + "gate.e_score_correction_bias",
                   {config.experts.count},
                   tensor_role::choice_bias,
                   layer,
                   0});
  if (const std::size_t shared = config.experts.shared * inner; shared != 0) {
    add("shared_experts.gate_proj", shared, hidden, tensor_role::shared_gate);
    add("shared_experts.up_proj", shared, hidden, tensor_role::shared_up);
    add("shared_experts.down_proj", hidden, shared, tensor_role::shared_down);
  }
  for (std::size_t e = 0; e < config.experts.count; ++e) {
    const std::string expert = "experts." + std::to_string(e) + ".";
    add(expert + "gate_proj", inner, hidden, tensor_role::expert_gate, e);
    add(expert + "up_proj", inner, hidden, tensor_role::expert_up, e);
    add(expert + "down_proj", hidden, inner, tensor_role::expert_down, e);
  }
}

/// Attention's projections and norms, from the hidden state to it.
void plan_attention(const model_config& config, std::size_t layer,
                    std::vector<planned_tensor>& out) {
  const std::string prefix = prefix_of(config, layer) + "self_attn.";
  const auto add = [&](std::string_view name, std::vector<std::size_t> shape, tensor_role role) {
    out.push_back({prefix + std::string(name), std::move(shape), role, layer, 0});
  };
  const std::size_t hidden = config.attention_input();
  if (const auto& latent = config.latent; latent.rank != 0) {
    const std::size_t q = config.heads * (latent.nope + latent.rope);
    if (latent.q_rank != 0) {
      add("q_a_proj.weight", {latent.q_rank, hidden}, tensor_role::q_a);
      add("q_a_layernorm.weight", {latent.q_rank}, tensor_role::q_a_norm);
      add("q_b_proj.weight", {q, latent.q_rank}, tensor_role::q_b);
    } else {
      add("q_proj.weight", {q, hidden}, tensor_role::q);
    }
    add("kv_a_proj_with_mqa.weight", {latent.rank + latent.rope, hidden}, tensor_role::kv_a);
    add("kv_a_layernorm.weight", {latent.rank}, tensor_role::kv_a_norm);
    add("kv_b_proj.weight", {config.heads * (latent.nope + latent.value), latent.rank},
        tensor_role::kv_b);
    return;
  }
  const std::size_t q = config.heads * config.head_dim;
  const std::size_t kv = config.kv_heads * config.head_dim;
  add("q_proj.weight", {q, hidden}, tensor_role::q);
  add("k_proj.weight", {kv, hidden}, tensor_role::k);
  add("v_proj.weight", {kv, hidden}, tensor_role::v);
  if (config.attention_bias) {
    add("q_proj.bias", {q}, tensor_role::q_bias);
    add("k_proj.bias", {kv}, tensor_role::k_bias);
    add("v_proj.bias", {kv}, tensor_role::v_bias);
  }
  if (config.qk_norm) {
    add("q_norm.weight", {config.head_dim}, tensor_role::q_norm);
    add("k_norm.weight", {config.head_dim}, tensor_role::k_norm);
  }
}

void plan_layer(const model_config& config, std::size_t layer, std::vector<planned_tensor>& out) {
  const std::string prefix = prefix_of(config, layer);
  const auto add = [&](std::string_view name, std::vector<std::size_t> shape, tensor_role role) {
    out.push_back({prefix + std::string(name), std::move(shape), role, layer, 0});
  };
  const std::size_t hidden = config.hidden;
  add("input_layernorm.weight", {hidden}, tensor_role::input_norm);
  plan_attention(config, layer, out);
  add("self_attn.o_proj.weight", {hidden, config.attended_width()}, tensor_role::o);
  add("post_attention_layernorm.weight", {hidden}, tensor_role::post_norm);
  plan_ffn(config, layer, out);
}

/// A drafter: its layer, and what stands before and behind it.
std::vector<planned_tensor> plan_draft(const model_config& config) {
  const draft_config& draft = config.draft;
  const std::size_t hidden = config.hidden;
  const bool eagle = draft.kind == draft_kind::eagle3;
  const std::string& layer = draft.layer_prefix;
  const std::string& outer = eagle ? draft.outer_prefix : layer;
  const auto named = [&](const char* of_eagle, const char* of_mimo, const char* of_next) {
    return eagle ? of_eagle : draft.mimo ? of_mimo : of_next;
  };
  std::vector<planned_tensor> out;
  if (draft.own_embedding)
    out.push_back({outer + "embed_tokens.weight",
                   {draft.target_vocabulary, hidden},
                   tensor_role::embedding,
                   0,
                   0});
  out.push_back({outer + named("fc", "input_proj", "eh_proj") + ".weight",
                 {hidden, eagle ? draft.state_width : 2 * hidden},
                 tensor_role::fuse,
                 0,
                 0});
  if (!eagle) // an EAGLE-3 head's layer norms the token by its input norm
    out.push_back({layer + named("", "token_layernorm", "enorm") + ".weight",
                   {hidden},
                   tensor_role::embed_norm,
                   0,
                   0});
  out.push_back({layer + named("hidden_norm", "hidden_layernorm", "hnorm") + ".weight",
                 {hidden},
                 tensor_role::hidden_norm,
                 0,
                 0});
  plan_layer(config, 0, out);
  out.push_back({outer + named("norm", "final_layernorm", "shared_head.norm") + ".weight",
                 {hidden},
                 tensor_role::final_norm,
                 0,
                 0});
  if (draft.own_head)
    out.push_back({"lm_head.weight", {config.vocabulary, hidden}, tensor_role::lm_head, 0, 0});
  return out;
}

/// `is_known_extra` of a drafter.
bool is_draft_extra(const model_config& config, std::string_view name) {
  if (name.ends_with("rotary_emb.inv_freq"))
    return true;
  if (config.draft.kind == draft_kind::eagle3)
    return name == "d2t" || name == "t2d";
  const std::string& prefix = config.draft.layer_prefix;
  return name == prefix + "embed_tokens.weight" || name == prefix + "shared_head.head.weight";
}

} // namespace

std::vector<planned_tensor> plan_tensors(const model_config& config) {
  if (config.draft.kind != draft_kind::none)
    return plan_draft(config);
  const std::size_t hidden = config.hidden;
  std::vector<planned_tensor> out;
  out.push_back(
    {"model.embed_tokens.weight", {config.vocabulary, hidden}, tensor_role::embedding, 0, 0});
  for (std::size_t layer = 0; layer < config.layers; ++layer)
    plan_layer(config, layer, out);
  out.push_back({"model.norm.weight", {hidden}, tensor_role::final_norm, 0, 0});
  if (!config.tie_embeddings)
    out.push_back({"lm_head.weight", {config.vocabulary, hidden}, tensor_role::lm_head, 0, 0});
  return out;
}

bool is_known_extra(const model_config& config, std::string_view name) {
  if (config.draft.kind != draft_kind::none)
    return is_draft_extra(config, name);
  if (name.starts_with(draft_prefix)) // of workers that draft with a model
    return true;
  if (name.starts_with("model.") && name.ends_with("rotary_emb.inv_freq"))
    return true;
  if (config.tie_embeddings && name == "lm_head.weight")
    return true;
  if (config.family == architecture::mimo)
    return name.starts_with("model.mtp_layers.");
  for (std::size_t i = 0; i < config.mtp_layers; ++i)
    if (name.starts_with("model.layers." + std::to_string(config.layers + i) + "."))
      return true;
  return false;
}

} // namespace rollcast
