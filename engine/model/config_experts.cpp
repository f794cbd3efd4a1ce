#include "engine/model/config_experts.hpp"

#include <algorithm>

namespace rollcast {

namespace {

constexpr std::size_t expert_intermediate_max = 1u << 20;

bool required_flag(config_reader& in, std::string_view key) {
  if (!in.has(key))
    in.refuse("key \"" + std::string(key) + "\" is missing; needed: true or false");
  return in.flag_or(key, false);
}

/// What every family with experts says, under its own name for their number.
void read_counts(config_reader& in, std::string_view count_key, expert_config& out) {
  out.count = in.count(count_key, kernels::experts_max);
  out.per_token = in.count("num_experts_per_tok", kernels::experts_max);
  out.intermediate = in.count("moe_intermediate_size", expert_intermediate_max);
  out.normalise = required_flag(in, "norm_topk_prob");
  if (out.per_token > out.count)
    in.refuse("num_experts_per_tok", "it must be at most " + std::string(count_key) + " = "
                                       + std::to_string(out.count));
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

} // namespace

void read_experts(config_reader& in, model_config& config) {
  if (config.family == architecture::qwen3_moe)
    read_qwen3_moe(in, config);
}

void write_experts(const model_config& config, nlohmann::ordered_json& out) {
  const auto& experts = config.experts;
  if (experts.count == 0)
    return;
  out["num_experts"] = experts.count;
  out["num_experts_per_tok"] = experts.per_token;
  out["moe_intermediate_size"] = experts.intermediate;
  out["norm_topk_prob"] = experts.normalise;
  out["decoder_sparse_step"] = 1;
  out["mlp_only_layers"] = experts.dense_layers;
}

bool model_config::is_sparse(std::size_t layer) const noexcept {
  return experts.count != 0
         && !std::binary_search(experts.dense_layers.begin(), experts.dense_layers.end(), layer);
}

} // namespace rollcast
