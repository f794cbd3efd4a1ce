#include "engine/model/config_experts.hpp"

#include <algorithm>
#include <numeric>

namespace rollcast {

namespace {

constexpr std::size_t expert_intermediate_max = 1u << 20;
constexpr std::size_t shared_max = 64;

/// What every family with experts says, under its own name for their number.
void read_counts(config_reader& in, std::string_view count_key, expert_config& out) {
  out.count = in.count(count_key, kernels::experts_max);
  out.per_token = in.count("num_experts_per_tok", kernels::experts_max);
  out.intermediate = in.count("moe_intermediate_size", expert_intermediate_max);
  out.normalise = in.flag("norm_topk_prob");
  if (out.per_token > out.count)
    in.refuse("num_experts_per_tok",
              "it must be at most " + std::string(count_key) + " = " + std::to_string(out.count));
}

/// Qwen3-MoE: a layer is sparse unless it is named, or the step passes it by.
void read_qwen3_moe(config_reader& in, model_config& config) {
  auto& out = config.experts;
  const bool newer = in.has("num_local_experts") && !in.has("num_experts");
  read_counts(in, newer ? "num_local_experts" : "num_experts", out);
  const auto step = in.count_or("decoder_sparse_step", 1, 1, config.layers);
  std::vector<bool> named(config.layers, false);
  if (in.has("mlp_only_layers")) {
    const std::string accepted =
      "accepted: a list of layers from 0 to " + std::to_string(config.layers - 1);
    const auto& list = *in.find("mlp_only_layers");
    if (!list.is_array())
      return in.refuse("mlp_only_layers", accepted);
    for (const auto& layer : list) {
      if (!layer.is_number_integer() || layer < 0 || layer >= config.layers)
        return in.refuse("mlp_only_layers", accepted);
      named[layer.get<std::size_t>()] = true;
    }
  }
  for (std::size_t layer = 0; layer < config.layers; ++layer)
    if (named[layer] || (layer + 1) % step != 0)
      out.dense_layers.push_back(layer);
}

/// GLM-4.5 and what follows DeepSeek-V3: a sigmoid with a correction of the choice, groups, shared
/// experts, and a run of dense layers before the sparse ones.
void read_corrected(config_reader& in, model_config& config) {
  auto& out = config.experts;
  if (in.text_or("scoring_func", "sigmoid") != "sigmoid")
    in.refuse("scoring_func", "accepted: \"sigmoid\"");
  if (in.text_or("topk_method", "noaux_tc") != "noaux_tc")
    in.refuse("topk_method", "accepted: \"noaux_tc\"");
  in.count_or("moe_layer_freq", 1, 1, 1);
  read_counts(in, "n_routed_experts", out);
  out.score = kernels::router_score::sigmoid;
  out.choice_bias = true;
  out.shared = in.count_or("n_shared_experts", 0, 0, shared_max);
  out.scaling = static_cast<float>(in.real("routed_scaling_factor", 1e-6, 1e6));
  out.groups = in.count("n_group", kernels::experts_max);
  out.groups_kept = in.count("topk_group", kernels::experts_max);
  if (out.count % out.groups != 0 || (out.groups > 1 && out.count / out.groups < 2))
    in.refuse("n_group", "it must divide n_routed_experts = " + std::to_string(out.count)
                           + " into groups of at least two");
  if (out.groups_kept > out.groups)
    in.refuse("topk_group", "it must be at most n_group = " + std::to_string(out.groups));
  else if (out.groups_kept * (out.count / std::max<std::size_t>(out.groups, 1)) < out.per_token)
    in.refuse("topk_group", "so few groups hold less than num_experts_per_tok = "
                              + std::to_string(out.per_token) + " experts");
  if (!in.has("first_k_dense_replace"))
    in.refuse("key \"first_k_dense_replace\" is missing; needed: a number of layers");
  out.dense_layers.resize(in.count_or("first_k_dense_replace", 0, 0, config.layers));
  std::iota(out.dense_layers.begin(), out.dense_layers.end(), std::size_t{0});
}

} // namespace

void read_experts(config_reader& in, model_config& config) {
  if (config.family == architecture::qwen3_moe)
    read_qwen3_moe(in, config);
  if (config.family == architecture::glm4_moe || config.family == architecture::deepseek_v3)
    read_corrected(in, config);
}

void write_experts(const model_config& config, nlohmann::ordered_json& out) {
  const auto& experts = config.experts;
  if (experts.count == 0)
    return;
  const bool corrected = experts.choice_bias;
  out[corrected ? "n_routed_experts" : "num_experts"] = experts.count;
  out["num_experts_per_tok"] = experts.per_token;
  out["moe_intermediate_size"] = experts.intermediate;
  out["norm_topk_prob"] = experts.normalise;
  if (!corrected) {
    out["decoder_sparse_step"] = 1;
    out["mlp_only_layers"] = experts.dense_layers;
    return;
  }
  out["n_shared_experts"] = experts.shared;
  out["routed_scaling_factor"] = static_cast<double>(experts.scaling);
  out["n_group"] = experts.groups;
  out["topk_group"] = experts.groups_kept;
  out["first_k_dense_replace"] = experts.dense_layers.size();
}

bool model_config::is_sparse(std::size_t layer) const noexcept {
  return experts.count != 0
         && !std::binary_search(experts.dense_layers.begin(), experts.dense_layers.end(), layer);
}

} // namespace rollcast
