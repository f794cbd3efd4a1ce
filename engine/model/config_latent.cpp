#include "engine/model/config_latent.hpp"

#include "kernels/kv_layout.hpp"
#include "kernels/numerics.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

namespace rollcast {

namespace {

constexpr std::size_t q_rank_max = 65536;
constexpr std::size_t part_max = 1024; ///< Dimensions of a part of a head.
constexpr std::size_t rope_max = 256;
constexpr std::size_t positions_max = 1u << 24;

/// Source: DeepSeek's published model code, `yarn_get_mscale`.
double mscale_of(double factor, double mscale) noexcept {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * kernels::log_f64(factor) + 1.0;
}

std::size_t multiple(config_reader& in, std::string_view key, std::size_t most, std::size_t of) {
  const std::size_t value = in.count(key, most);
  if (value % of != 0)
    in.refuse(key,
              "accepted: a multiple of " + std::to_string(of) + " up to " + std::to_string(most));
  return value;
}

} // namespace

void read_latent(config_reader& in, model_config& config) {
  auto& out = config.latent;
  if (config.kv_heads != config.heads)
    in.refuse("num_key_value_heads", "keys come from one latent for all heads; accepted: "
                                     "num_attention_heads = "
                                       + std::to_string(config.heads));
  out.rank = multiple(in, "kv_lora_rank", kernels::latent_dim_max, 32);
  out.q_rank = in.count_or("q_lora_rank", 0, 1, q_rank_max);
  out.nope = in.count("qk_nope_head_dim", part_max);
  out.rope = multiple(in, "qk_rope_head_dim", rope_max, 16);
  out.value = multiple(in, "v_head_dim", part_max, 32);
  if (!in.flag_or("rope_interleave", true))
    in.refuse("rope_interleave", "accepted: true or absent, neighbours are rotated together");
  config.kv_heads = 1;
  config.head_dim = out.rank + out.rope;
}

void read_yarn(config_reader& rope, model_config& config) {
  auto& out = config.rope;
  out.scaling = kernels::rope_scaling::yarn;
  out.factor = rope.real("factor", 1.0, 1e6);
  out.original_max_position =
    static_cast<double>(rope.count("original_max_position_embeddings", positions_max));
  out.beta_fast = rope.real("beta_fast", 1e-6, 1e6);
  out.beta_slow = rope.real("beta_slow", 1e-6, 1e6);
  const double mscale = rope.real("mscale", 0.0, 100.0);
  const double all = rope.real("mscale_all_dim", 0.0, 100.0);
  if (out.beta_slow > out.beta_fast) // Kimi-K2's are equal
    rope.refuse("beta_slow", "it must be at most beta_fast");
  // As published: the ratio only where both are given, and the square in the scores' scale.
  out.attention_factor = mscale != 0.0 && all != 0.0
                           ? mscale_of(out.factor, mscale) / mscale_of(out.factor, all)
                           : mscale_of(out.factor, 1.0);
  config.latent.mscale = mscale;
  config.latent.mscale_all = all;
}

bool has_fp8_blocks(const config_reader& in) {
  if (!in.has("quantization_config") || in.has("compression_config"))
    return false;
  const auto& how = *in.find("quantization_config");
  const auto is = [&](const char* key, const nlohmann::json& value) {
    return how.contains(key) && how.at(key) == value;
  };
  return how.is_object() && is("quant_method", "fp8") && is("fmt", "e4m3")
         && is("weight_block_size", nlohmann::json::array({128, 128}));
}

void write_latent(const model_config& config, nlohmann::ordered_json& out) {
  const auto& latent = config.latent;
  if (latent.rank == 0)
    return;
  out["num_key_value_heads"] = config.heads;
  out.erase("head_dim");
  out["q_lora_rank"] = nullptr;
  if (latent.q_rank != 0)
    out["q_lora_rank"] = latent.q_rank;
  out["kv_lora_rank"] = latent.rank;
  out["qk_nope_head_dim"] = latent.nope;
  out["qk_rope_head_dim"] = latent.rope;
  out["v_head_dim"] = latent.value;
  if (config.rope.scaling == kernels::rope_scaling::yarn)
    out["rope_scaling"] = {{"type", "yarn"},
                           {"factor", config.rope.factor},
                           {"beta_fast", config.rope.beta_fast},
                           {"beta_slow", config.rope.beta_slow},
                           {"mscale", latent.mscale},
                           {"mscale_all_dim", latent.mscale_all},
                           {"original_max_position_embeddings",
                            static_cast<std::size_t>(config.rope.original_max_position)}};
}

std::size_t model_config::attention_input() const noexcept {
  return draft.kind == draft_kind::eagle3 ? 2 * hidden : hidden; // the token's embedding beside it
}

std::size_t model_config::qkv_width() const noexcept {
  if (latent.rank == 0)
    return (heads + 2 * kv_heads) * head_dim;
  const std::size_t q = latent.q_rank != 0 ? latent.q_rank : heads * (latent.nope + latent.rope);
  return q + head_dim;
}

std::size_t model_config::attended_width() const noexcept {
  return heads * (latent.rank != 0 ? latent.value : head_dim);
}

float model_config::attention_scale() const noexcept {
  if (latent.rank == 0)
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  double scale = 1.0 / std::sqrt(static_cast<double>(latent.nope + latent.rope));
  if (rope.scaling == kernels::rope_scaling::yarn && latent.mscale_all != 0.0) {
    const double mscale = mscale_of(rope.factor, latent.mscale_all);
    scale *= mscale * mscale;
  }
  return static_cast<float>(scale);
}

} // namespace rollcast
