// Goal: the plan of a published model has the tensors of its published files, by name, shape and
// number of parameters.
// Method: the shapes of the published config.json files; names as model.safetensors.index.json has
// them; numbers of tensors and parameters counted by hand from the architecture.

#include "engine/model/config.hpp"
#include "engine/model/tensor_plan.hpp"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <string>
#include <vector>

namespace rollcast {
namespace {

using shape = std::vector<std::size_t>;

struct published {
  std::map<std::string, shape> tensors;
  std::size_t parameters = 0;
};

published plan_of(const model_config& config) {
  published out;
  for (const auto& tensor : plan_tensors(config)) {
    EXPECT_TRUE(out.tensors.emplace(tensor.name, tensor.shape).second) << tensor.name;
    out.parameters += std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::size_t{1},
                                      std::multiplies<>());
  }
  return out;
}

std::vector<std::size_t> first_layers(std::size_t count) {
  std::vector<std::size_t> out(count);
  std::iota(out.begin(), out.end(), std::size_t{0});
  return out;
}

TEST(published_names, of_qwen3_30b_a3b_are_planned) {
  model_config c;
  c.family = architecture::qwen3_moe;
  c.hidden = 2048;
  c.layers = 48;
  c.heads = 32;
  c.kv_heads = 4;
  c.head_dim = 128;
  c.intermediate = 6144;
  c.vocabulary = 151936;
  c.qk_norm = true;
  c.experts.count = 128;
  c.experts.per_token = 8;
  c.experts.intermediate = 768;
  const auto plan = plan_of(c);
  EXPECT_EQ(18867u, plan.tensors.size());
  EXPECT_EQ(30'532'122'624u, plan.parameters); // as its card says, 30.5 B
  EXPECT_EQ((shape{128, 2048}), plan.tensors.at("model.layers.47.mlp.gate.weight"));
  EXPECT_EQ((shape{2048, 768}), plan.tensors.at("model.layers.0.mlp.experts.127.down_proj.weight"));
  EXPECT_EQ((shape{128}), plan.tensors.at("model.layers.9.self_attn.q_norm.weight"));
}

TEST(published_names, of_glm_4_5_air_are_planned_and_its_mtp_layer_is_known) {
  model_config c;
  c.family = architecture::glm4_moe;
  c.hidden = 4096;
  c.layers = 46;
  c.heads = 96;
  c.kv_heads = 8;
  c.head_dim = 128;
  c.intermediate = 10944;
  c.vocabulary = 151552;
  c.attention_bias = true;
  c.mtp_layers = 1;
  c.experts.count = 128;
  c.experts.per_token = 8;
  c.experts.intermediate = 1408;
  c.experts.shared = 1;
  c.experts.choice_bias = true;
  c.experts.dense_layers = first_layers(1);
  const auto plan = plan_of(c);
  // 9 of attention and norms a layer, 3 of the dense FFN, 2 + 3 + 384 of each sparse one, 3
  // outside.
  EXPECT_EQ(46u * 9 + 3 + 45 * 389 + 3, plan.tensors.size());
  EXPECT_EQ((shape{12288}), plan.tensors.at("model.layers.45.self_attn.q_proj.bias"));
  EXPECT_EQ((shape{128}), plan.tensors.at("model.layers.1.mlp.gate.e_score_correction_bias"));
  EXPECT_EQ((shape{1408, 4096}),
            plan.tensors.at("model.layers.1.mlp.shared_experts.up_proj.weight"));
  EXPECT_EQ((shape{10944, 4096}), plan.tensors.at("model.layers.0.mlp.gate_proj.weight"));
  for (const auto* name :
       {"model.layers.46.eh_proj.weight", "model.layers.46.enorm.weight",
        "model.layers.46.shared_head.head.weight", "model.layers.46.embed_tokens.weight",
        "model.layers.46.mlp.experts.127.up_proj.weight"})
    EXPECT_TRUE(is_known_extra(c, name)) << name;
  EXPECT_FALSE(is_known_extra(c, "model.layers.47.enorm.weight"));
  EXPECT_FALSE(is_known_extra(c, "model.layers.4.enorm.weight"));
}

/// What DeepSeek-V3, Moonlight and Kimi-K2 share.
model_config deepseek_shape() {
  model_config c;
  c.family = architecture::deepseek_v3;
  c.kv_heads = 1;
  c.latent.rank = 512;
  c.latent.nope = 128;
  c.latent.rope = 64;
  c.latent.value = 128;
  c.head_dim = 576;
  c.experts.choice_bias = true;
  return c;
}

TEST(published_names, of_deepseek_v3_are_planned) {
  auto c = deepseek_shape();
  c.hidden = 7168;
  c.layers = 61;
  c.heads = 128;
  c.intermediate = 18432;
  c.vocabulary = 129280;
  c.latent.q_rank = 1536;
  c.mtp_layers = 1;
  c.experts.count = 256;
  c.experts.intermediate = 2048;
  c.experts.shared = 1;
  c.experts.dense_layers = first_layers(3);
  const auto plan = plan_of(c);
  EXPECT_EQ(61u * 9 + 3 * 3 + 58 * (2 + 3 + 3 * 256) + 3, plan.tensors.size());
  EXPECT_EQ(671'026'419'200u, plan.parameters); // 671 B, as its card says
  const std::string at = "model.layers.60.self_attn.";
  EXPECT_EQ((shape{1536, 7168}), plan.tensors.at(at + "q_a_proj.weight"));
  EXPECT_EQ((shape{24576, 1536}), plan.tensors.at(at + "q_b_proj.weight"));
  EXPECT_EQ((shape{576, 7168}), plan.tensors.at(at + "kv_a_proj_with_mqa.weight"));
  EXPECT_EQ((shape{32768, 512}), plan.tensors.at(at + "kv_b_proj.weight"));
  EXPECT_EQ((shape{7168, 16384}), plan.tensors.at(at + "o_proj.weight"));
  EXPECT_EQ((shape{512}), plan.tensors.at(at + "kv_a_layernorm.weight"));
  EXPECT_TRUE(is_known_extra(c, "model.layers.61.hnorm.weight"));
}

TEST(published_names, of_moonlight_are_planned) {
  auto c = deepseek_shape();
  c.hidden = 2048;
  c.layers = 27;
  c.heads = 16;
  c.intermediate = 11264;
  c.vocabulary = 163840;
  c.experts.count = 64;
  c.experts.intermediate = 1408;
  c.experts.shared = 2;
  c.experts.dense_layers = first_layers(1);
  const auto plan = plan_of(c);
  EXPECT_EQ(15'960'110'208u, plan.parameters); // 16 B, as its name says
  EXPECT_EQ((shape{3072, 2048}), plan.tensors.at("model.layers.3.self_attn.q_proj.weight"));
  EXPECT_EQ((shape{2816, 2048}),
            plan.tensors.at("model.layers.26.mlp.shared_experts.gate_proj.weight"));
  EXPECT_FALSE(plan.tensors.contains("model.layers.3.self_attn.q_a_proj.weight"));
}

TEST(published_names, of_kimi_k2_are_planned) {
  auto c = deepseek_shape();
  c.hidden = 7168;
  c.layers = 61;
  c.heads = 64;
  c.intermediate = 18432;
  c.vocabulary = 163840;
  c.latent.q_rank = 1536;
  c.experts.count = 384;
  c.experts.intermediate = 2048;
  c.experts.shared = 1;
  c.experts.dense_layers = first_layers(1);
  const auto plan = plan_of(c);
  EXPECT_EQ(61u * 9 + 3 + 60 * (2 + 3 + 3 * 384) + 3, plan.tensors.size());
  EXPECT_EQ(1'026'408'232'448u, plan.parameters); // 1 T, as its card says
  EXPECT_EQ((shape{12288, 1536}), plan.tensors.at("model.layers.60.self_attn.q_b_proj.weight"));
  EXPECT_EQ((shape{384}), plan.tensors.at("model.layers.1.mlp.gate.e_score_correction_bias"));
}

} // namespace
} // namespace rollcast
