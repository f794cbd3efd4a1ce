#include "tests/support/tiny_model.hpp"

#include "engine/base/check.hpp"

#include <cstdlib>
#include <string>
#include <system_error>

namespace rollcast {
namespace {

/// The experts, and what else is particular, of the families that have some.
void add_experts(model_config& config) {
  const auto family = config.family;
  if (family == architecture::qwen3_moe) {
    config.head_dim = config.rope.head_dim = 32;
    config.qk_norm = true;
    config.experts.count = 11;
    config.experts.per_token = 3;
    config.experts.intermediate = 40;
    config.experts.normalise = true;
    config.experts.dense_layers = {0};
  }
  if (family == architecture::glm4_moe) {
    config.attention_bias = config.qk_norm = true;
    config.head_dim = 32;
    config.rope.head_dim = 16;
  }
  if (family == architecture::deepseek_v3) {
    config.kv_heads = 1;
    config.latent.rank = 64;
    config.latent.q_rank = 48;
    config.latent.nope = 24;
    config.latent.rope = config.rope.head_dim = 16;
    config.latent.value = 32;
    config.head_dim = config.latent.rank + config.latent.rope;
    config.rope.scaling = kernels::rope_scaling::yarn;
    config.rope.theta = 1e4;
    config.rope.factor = 8.0;
    config.rope.original_max_position = 64;
    config.latent.mscale = config.latent.mscale_all = 1.0;
  }
  if (family == architecture::glm4_moe || family == architecture::deepseek_v3) {
    config.mtp_layers = 1;
    auto& experts = config.experts;
    experts.count = 12;
    experts.per_token = 3;
    experts.intermediate = 40;
    experts.shared = 2;
    experts.score = kernels::router_score::sigmoid;
    experts.choice_bias = experts.normalise = true;
    experts.groups = 4;
    experts.groups_kept = 2;
    experts.scaling = 2.5f;
    experts.dense_layers = {0};
  }
}

} // namespace

model_config tiny_config(architecture family) {
  model_config config;
  config.family = family;
  config.hidden = 64;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = family == architecture::qwen3 ? 32 : 16;
  config.intermediate = 96;
  config.vocabulary = 200;
  config.rms_eps = 1e-6f;
  config.rope.head_dim = config.head_dim;
  config.rope.theta = 1e6;
  config.max_positions = 512;
  config.tie_embeddings = family == architecture::qwen3;
  config.attention_bias = family == architecture::qwen2 || family == architecture::mimo;
  config.qk_norm = family == architecture::qwen3;
  config.eos_token_ids = {199};
  config.dtype = "bfloat16";
  if (family == architecture::llama) {
    config.rope.theta = 1e4;
    config.rope.scaling = kernels::rope_scaling::llama3;
    config.rope.factor = 8.0;
    config.rope.low_freq_factor = 1.0;
    config.rope.high_freq_factor = 4.0;
    config.rope.original_max_position = 32;
  }
  add_experts(config);
  if (family == architecture::mimo)
    config.mtp_layers = 1;
  return config;
}

void write_tiny_model(const std::filesystem::path& directory, architecture family,
                      std::uint64_t seed, kernels::dtype type, std::size_t shards) {
  const auto written = write_random_model(directory, tiny_config(family), seed, type, shards);
  ROLLCAST_CHECK(written.has_value());
}

} // namespace rollcast
