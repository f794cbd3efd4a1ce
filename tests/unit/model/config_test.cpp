// Goal: load_config takes what the families publish and refuses everything else in one clear line.
// Method: a good config.json per family and spelling, then a table of edits of a good one, each
// with the words that its refusal must hold.

#include "engine/model/config.hpp"
#include "tests/support/tiny_model.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <string>
#include <vector>

namespace rollcast {
namespace {

using nlohmann::json;

void write(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

result<model_config> load(const std::string& config, const std::string& generation = "") {
  const temporary_directory directory;
  write(directory / "config.json", config);
  if (!generation.empty())
    write(directory / "generation_config.json", generation);
  return load_config(directory.path());
}

json good(architecture family = architecture::qwen3) {
  return json::parse(to_config_json(tiny_config(family)));
}

/// A good config with the edits of a JSON merge patch, except that null sets null.
json edited(const json& patch, architecture family = architecture::qwen3) {
  json out = good(family);
  for (const auto& [key, value] : patch.items())
    out[key] = value;
  return out;
}

void expect_refused(const std::string& text, const std::vector<std::string>& words,
                    const std::string& generation = "") {
  const auto config = load(text, generation);
  ASSERT_FALSE(config.has_value()) << "accepted: " << text;
  const auto& detail = config.error().detail;
  EXPECT_EQ(errc::bad_config, config.error().code) << detail;
  EXPECT_EQ(std::string::npos, detail.find('\n')) << detail;
  EXPECT_NE(std::string::npos, detail.find("config.json")) << detail;
  for (const auto& word : words)
    EXPECT_NE(std::string::npos, detail.find(word)) << "no '" << word << "' in: " << detail;
}

class every_family : public testing::TestWithParam<architecture> {};

TEST_P(every_family, reads_back_what_to_config_json_writes) {
  const auto want = tiny_config(GetParam());
  const auto config = load(to_config_json(want));
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  EXPECT_EQ(want.family, config->family);
  EXPECT_EQ(want.hidden, config->hidden);
  EXPECT_EQ(want.layers, config->layers);
  EXPECT_EQ(want.heads, config->heads);
  EXPECT_EQ(want.kv_heads, config->kv_heads);
  EXPECT_EQ(want.head_dim, config->head_dim);
  EXPECT_EQ(want.intermediate, config->intermediate);
  EXPECT_EQ(want.vocabulary, config->vocabulary);
  EXPECT_EQ(want.rms_eps, config->rms_eps);
  EXPECT_EQ(want.max_positions, config->max_positions);
  EXPECT_EQ(want.tie_embeddings, config->tie_embeddings);
  EXPECT_EQ(want.attention_bias, config->attention_bias);
  EXPECT_EQ(want.qk_norm, config->qk_norm);
  EXPECT_EQ(want.eos_token_ids, config->eos_token_ids);
  EXPECT_EQ(want.dtype, config->dtype);
  EXPECT_EQ(want.mtp_layers, config->mtp_layers);
  EXPECT_EQ(want.rope.beta_fast, config->rope.beta_fast);
  EXPECT_EQ(want.rope.beta_slow, config->rope.beta_slow);
  EXPECT_EQ(want.rope.attention_factor, config->rope.attention_factor);
  EXPECT_EQ(want.latent.rank, config->latent.rank);
  EXPECT_EQ(want.latent.q_rank, config->latent.q_rank);
  EXPECT_EQ(want.latent.nope, config->latent.nope);
  EXPECT_EQ(want.latent.rope, config->latent.rope);
  EXPECT_EQ(want.latent.value, config->latent.value);
  EXPECT_EQ(want.latent.mscale, config->latent.mscale);
  EXPECT_EQ(want.latent.mscale_all, config->latent.mscale_all);
  EXPECT_EQ(want.experts.count, config->experts.count);
  EXPECT_EQ(want.experts.per_token, config->experts.per_token);
  EXPECT_EQ(want.experts.intermediate, config->experts.intermediate);
  EXPECT_EQ(want.experts.shared, config->experts.shared);
  EXPECT_EQ(want.experts.score, config->experts.score);
  EXPECT_EQ(want.experts.choice_bias, config->experts.choice_bias);
  EXPECT_EQ(want.experts.groups, config->experts.groups);
  EXPECT_EQ(want.experts.groups_kept, config->experts.groups_kept);
  EXPECT_EQ(want.experts.scaling, config->experts.scaling);
  EXPECT_EQ(want.experts.normalise, config->experts.normalise);
  EXPECT_EQ(want.experts.dense_layers, config->experts.dense_layers);
  EXPECT_EQ(want.rope.head_dim, config->rope.head_dim);
  EXPECT_EQ(want.rope.theta, config->rope.theta);
  EXPECT_EQ(want.rope.scaling, config->rope.scaling);
  EXPECT_EQ(want.rope.factor, config->rope.factor);
  EXPECT_EQ(want.rope.low_freq_factor, config->rope.low_freq_factor);
  EXPECT_EQ(want.rope.high_freq_factor, config->rope.high_freq_factor);
  EXPECT_EQ(want.rope.original_max_position, config->rope.original_max_position);
}

TEST_P(every_family, is_accepted_as_transformers_saved_it) {
  const auto family = std::string(to_string(GetParam()));
  const auto config =
    load_config(std::filesystem::path(ROLLCAST_SOURCE_DIR) / "tests/fixtures/models" / family);
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  EXPECT_EQ(GetParam(), config->family);
}

INSTANTIATE_TEST_SUITE_P(families, every_family,
                         testing::Values(architecture::qwen3, architecture::qwen2,
                                         architecture::llama, architecture::mimo,
                                         architecture::qwen3_moe, architecture::glm4_moe,
                                         architecture::deepseek_v3),
                         [](const auto& about) { return std::string(to_string(about.param)); });

TEST(load_config, takes_the_spelling_of_transformers_5) {
  auto text = good(architecture::llama);
  text["rope_parameters"] = text["rope_scaling"];
  text["rope_parameters"]["rope_theta"] = 500000;
  text["dtype"] = "torch.float32";
  for (const auto* key : {"rope_scaling", "rope_theta", "torch_dtype"})
    text.erase(key);
  const auto config = load(text.dump());
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  EXPECT_EQ(500000.0, config->rope.theta);
  EXPECT_EQ(kernels::rope_scaling::llama3, config->rope.scaling);
  EXPECT_EQ(8.0, config->rope.factor);
  EXPECT_EQ("float32", config->dtype);
}

TEST(load_config, takes_the_old_key_of_the_rope_type) {
  const auto linear = load(edited({{"rope_scaling", {{"type", "linear"}, {"factor", 4}}}}).dump());
  ASSERT_TRUE(linear.has_value()) << linear.error().detail;
  EXPECT_EQ(kernels::rope_scaling::linear, linear->rope.scaling);
  EXPECT_EQ(4.0, linear->rope.factor);
  const auto none = load(edited({{"rope_scaling", {{"rope_type", "default"}}}}).dump());
  ASSERT_TRUE(none.has_value()) << none.error().detail;
  EXPECT_EQ(kernels::rope_scaling::none, none->rope.scaling);
}

TEST(load_config, divides_hidden_by_heads_without_head_dim) {
  auto text = good(architecture::llama);
  text.erase("head_dim");
  text.erase("num_key_value_heads");
  const auto config = load(text.dump());
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  EXPECT_EQ(16u, config->head_dim);
  EXPECT_EQ(16u, config->rope.head_dim);
  EXPECT_EQ(4u, config->kv_heads);
}

TEST(load_config, finds_the_sparse_layers_by_step_and_by_name) {
  auto text = edited({{"num_hidden_layers", 6}}, architecture::qwen3_moe);
  text["decoder_sparse_step"] = 2;
  text["mlp_only_layers"] = {3};
  const auto config = load(text.dump());
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  EXPECT_EQ((std::vector<std::size_t>{0, 2, 3, 4}), config->experts.dense_layers);
  for (std::size_t layer = 0; layer < 6; ++layer)
    EXPECT_EQ(layer == 1 || layer == 5, config->is_sparse(layer)) << layer;
  text.erase("mlp_only_layers");
  text.erase("decoder_sparse_step");
  EXPECT_TRUE(load(text.dump())->experts.dense_layers.empty());
  EXPECT_FALSE(load(good(architecture::qwen3).dump())->is_sparse(0));
}

TEST(load_config, refuses_experts_that_do_not_fit_together) {
  const auto refused = [](const json& patch, const std::vector<std::string>& words) {
    expect_refused(edited(patch, architecture::qwen3_moe).dump(), words);
  };
  refused({{"num_experts_per_tok", 12}}, {"num_experts_per_tok = 12", "num_experts = 11"});
  refused({{"num_experts", 1025}}, {"num_experts = 1025", "1024"});
  refused({{"num_experts", nullptr}}, {"is missing"});
  refused({{"norm_topk_prob", nullptr}}, {"\"norm_topk_prob\" is missing"});
  refused({{"moe_intermediate_size", 0}}, {"moe_intermediate_size = 0"});
  refused({{"decoder_sparse_step", 0}}, {"decoder_sparse_step = 0"});
  refused({{"mlp_only_layers", {2}}}, {"mlp_only_layers", "layers from 0 to 1"});
  refused({{"mlp_only_layers", {-1}}}, {"mlp_only_layers"});
  refused({{"mlp_only_layers", 1}}, {"mlp_only_layers"});
}

TEST(load_config, refuses_groups_of_experts_that_do_not_fit_together) {
  const auto refused = [](const json& patch, const std::vector<std::string>& words) {
    expect_refused(edited(patch, architecture::glm4_moe).dump(), words);
  };
  refused({{"n_group", 5}}, {"n_group = 5", "n_routed_experts = 12"});
  refused({{"n_group", 12}}, {"n_group = 12", "at least two"});
  refused({{"topk_group", 5}}, {"topk_group = 5", "n_group = 4"});
  refused({{"topk_group", 1}, {"num_experts_per_tok", 4}}, {"topk_group = 1", "= 4"});
  refused({{"n_routed_experts", nullptr}}, {"\"n_routed_experts\" is missing"});
  refused({{"first_k_dense_replace", nullptr}}, {"\"first_k_dense_replace\" is missing"});
  refused({{"first_k_dense_replace", 3}}, {"first_k_dense_replace = 3"});
  refused({{"routed_scaling_factor", 0}}, {"routed_scaling_factor = 0"});
  refused({{"use_qk_norm", nullptr}}, {"\"use_qk_norm\" is missing"});
  refused({{"attention_bias", nullptr}}, {"\"attention_bias\" is missing"});
  refused({{"partial_rotary_factor", nullptr}}, {"\"partial_rotary_factor\" is missing"});
  refused({{"partial_rotary_factor", 0.3}}, {"partial_rotary_factor = 0.3", "multiple of 16"});
}

TEST(load_config, refuses_latents_that_the_engine_does_not_compute) {
  const auto refused = [](const json& patch, const std::vector<std::string>& words) {
    expect_refused(edited(patch, architecture::deepseek_v3).dump(), words);
  };
  refused({{"num_key_value_heads", 2}}, {"num_key_value_heads = 2", "one latent", "= 4"});
  refused({{"kv_lora_rank", 48}}, {"kv_lora_rank = 48", "multiple of 32 up to 512"});
  refused({{"kv_lora_rank", 544}}, {"kv_lora_rank = 544", "512"});
  refused({{"kv_lora_rank", nullptr}}, {"\"kv_lora_rank\" is missing"});
  refused({{"qk_rope_head_dim", 24}}, {"qk_rope_head_dim = 24", "multiple of 16"});
  refused({{"qk_nope_head_dim", 0}}, {"qk_nope_head_dim = 0"});
  refused({{"v_head_dim", 24}}, {"v_head_dim = 24", "multiple of 32"});
  refused({{"q_lora_rank", 0}}, {"q_lora_rank = 0"});
  refused({{"rope_interleave", false}}, {"rope_interleave = false"});
  refused({{"scoring_func", "softmax"}}, {"scoring_func = \"softmax\"", "sigmoid"});
  refused({{"topk_method", "greedy"}}, {"topk_method = \"greedy\"", "noaux_tc"});
  refused({{"moe_layer_freq", 2}}, {"moe_layer_freq = 2"});
  refused({{"attention_bias", true}}, {"attention_bias = true"});
  auto text = good(architecture::deepseek_v3);
  text["rope_scaling"]["beta_slow"] = 33;
  expect_refused(text.dump(), {"beta_slow = 33", "at most beta_fast"});
  text = good(architecture::deepseek_v3);
  text["rope_scaling"].erase("mscale_all_dim");
  expect_refused(text.dump(), {"\"mscale_all_dim\" is missing"});
  text = good(architecture::deepseek_v3);
  text["rope_scaling"]["truncate"] = false;
  expect_refused(text.dump(), {"truncate", "yarn"});
}

TEST(load_config, takes_fp8_blocks_of_deepseek_and_no_other_quantisation) {
  const json blocks{{"activation_scheme", "dynamic"},
                    {"fmt", "e4m3"},
                    {"quant_method", "fp8"},
                    {"weight_block_size", {128, 128}}};
  EXPECT_TRUE(load(edited({{"quantization_config", blocks}}, architecture::deepseek_v3).dump()));
  expect_refused(edited({{"quantization_config", blocks}}, architecture::glm4_moe).dump(),
                 {"quantization_config"});
  const std::vector<json> patches{json{{"weight_block_size", {64, 128}}},
                                  json{{"weight_block_size", nullptr}},
                                  json{{"quant_method", "gptq"}}, json{{"fmt", "e5m2"}}};
  for (const auto& patch : patches) {
    auto other = blocks;
    other.update(patch);
    expect_refused(edited({{"quantization_config", other}}, architecture::deepseek_v3).dump(),
                   {"quantization_config"});
  }
  expect_refused(edited({{"quantization_config", 8}}, architecture::deepseek_v3).dump(),
                 {"quantization_config = 8"});
}

TEST(load_config, has_the_attention_scales_of_the_published_files) {
  EXPECT_EQ(0.125f, [] {
    auto config = tiny_config(architecture::llama);
    config.head_dim = 64;
    return config.attention_scale();
  }());
  auto v3 = tiny_config(architecture::deepseek_v3);
  v3.latent.nope = 128;
  v3.latent.rope = 64;
  v3.rope.factor = 40.0; // (0.1 ln 40 + 1)^2 / sqrt(192)
  EXPECT_NEAR(0.1352338, v3.attention_scale(), 1e-6);
  v3.rope.scaling = kernels::rope_scaling::none; // Moonlight
  EXPECT_NEAR(0.0721688, v3.attention_scale(), 1e-6);
}

TEST(load_config, joins_the_eos_ids_of_both_files) {
  const auto config = load(edited({{"eos_token_id", 7}}).dump(), R"({"eos_token_id": [9, 3, 7]})");
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  EXPECT_EQ((std::vector<token_id>{3, 7, 9}), config->eos_token_ids);
  const auto none = load(edited({{"eos_token_id", nullptr}}).dump(), R"({"top_k": 20})");
  ASSERT_TRUE(none.has_value()) << none.error().detail;
  EXPECT_TRUE(none->eos_token_ids.empty());
}

TEST(load_config, ignores_a_window_that_is_off_or_covers_the_context) {
  EXPECT_TRUE(load(edited({{"sliding_window", 16}, {"use_sliding_window", false}}).dump()));
  EXPECT_TRUE(load(edited({{"sliding_window", 512}, {"use_sliding_window", true}}).dump()));
  EXPECT_TRUE(load(edited({{"sliding_window", nullptr}, {"use_sliding_window", true}}).dump()));
}

TEST(load_config, refuses_a_missing_key_by_name) {
  for (const std::string key :
       {"architectures", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "intermediate_size", "vocab_size", "rms_norm_eps", "rope_theta",
        "max_position_embeddings"}) {
    auto text = good();
    text.erase(key);
    expect_refused(text.dump(), {key, "missing"});
  }
}

TEST(load_config, refuses_a_wrong_type_or_an_absurd_number_by_key_and_value) {
  for (const std::string key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"}) {
    for (const auto& value : {json("64"), json(0), json(-64), json(64.5), json(true), json({64}),
                              json(1'000'000'000'000), json(18'446'744'073'709'551'615u)})
      expect_refused(edited({{key, value}}).dump(), {key + " = " + value.dump(), "accepted"});
  }
  for (const std::string key : {"rms_norm_eps", "rope_theta"}) {
    for (const auto& value : {json("1e-6"), json(0), json(-1.0), json(1e300), json(false)})
      expect_refused(edited({{key, value}}).dump(), {key + " = " + value.dump(), "accepted"});
  }
  for (const std::string key : {"tie_word_embeddings", "attention_bias", "use_sliding_window"})
    expect_refused(edited({{key, 1}}).dump(), {key + " = 1", "true or false"});
}

TEST(load_config, refuses_numbers_that_json_does_not_have) {
  for (const std::string bad : {"NaN", "Infinity", "-Infinity", "1e999", "0x10"}) {
    auto text = good().dump();
    text.replace(text.find("\"rms_norm_eps\":") + 15, 5, bad);
    expect_refused(text, {"JSON"});
  }
}

TEST(load_config, refuses_shapes_that_do_not_fit_together) {
  expect_refused(edited({{"num_key_value_heads", 3}}).dump(), {"num_key_value_heads = 3", "= 4"});
  expect_refused(edited({{"head_dim", 24}}).dump(), {"head_dim = 24", "multiple of 16"});
  expect_refused(edited({{"head_dim", 512}}).dump(), {"head_dim = 512", "256"});
  expect_refused(edited({{"head_dim", nullptr}, {"hidden_size", 72}}).dump(), {"72 / 4"});
}

TEST(load_config, refuses_what_the_engine_does_not_compute) {
  expect_refused(edited({{"architectures", {"MixtralForCausalLM"}}}).dump(),
                 {"MixtralForCausalLM", "Qwen3ForCausalLM", "MiMoForCausalLM"});
  expect_refused(edited({{"architectures", json::array()}}).dump(), {"architectures = []"});
  expect_refused(edited({{"architectures", "Qwen3ForCausalLM"}}).dump(), {"architectures"});
  expect_refused(edited({{"hidden_act", "gelu"}}).dump(), {"hidden_act = \"gelu\"", "silu"});
  expect_refused(edited({{"mlp_bias", true}}, architecture::llama).dump(), {"mlp_bias = true"});
  expect_refused(edited({{"attention_bias", true}}).dump(), {"attention_bias = true"});
  expect_refused(edited({{"attention_bias", true}}, architecture::llama).dump(),
                 {"attention_bias = true"});
  expect_refused(edited({{"attention_bias", false}}, architecture::mimo).dump(),
                 {"attention_bias = false"});
  expect_refused(edited({{"quantization_config", {{"quant_method", "fp8"}}}}).dump(),
                 {"quantization_config", "fp8", "bf16"});
  expect_refused(edited({{"use_sliding_window", true}, {"sliding_window", 511}}).dump(),
                 {"sliding_window = 511", "512"});
  expect_refused(
    edited({{"layer_types", {"full_attention", "sliding_attention"}}, {"sliding_window", 64}})
      .dump(),
    {"sliding_window = 64"});
  expect_refused(edited({{"layer_types", {"linear_attention"}}}).dump(), {"linear_attention"});
  expect_refused(edited({{"partial_rotary_factor", 0.5}}).dump(), {"partial_rotary_factor = 0.5"});
}

TEST(load_config, refuses_rope_parameters_that_it_does_not_know) {
  const auto rope = [](const json& value) { return edited({{"rope_scaling", value}}).dump(); };
  for (const std::string type : {"yarn", "dynamic", "longrope", "mrope", "su"})
    expect_refused(rope({{"rope_type", type}, {"factor", 4.0}}), {type, "default, linear, llama3"});
  expect_refused(rope({{"type", "default"}, {"mrope_section", {16, 24, 24}}}), {"mrope_section"});
  expect_refused(rope({{"rope_type", "linear"}}), {"factor", "missing"});
  expect_refused(rope({{"rope_type", "linear"}, {"factor", 0.5}}), {"factor = 0.5"});
  expect_refused(rope({{"rope_type", 3}}), {"rope_type = 3", "string"});
  expect_refused(rope({{"rope_type", "linear"}, {"type", "llama3"}, {"factor", 2.0}}),
                 {"contradicts rope_type"});
  expect_refused(rope("linear"), {"rope_scaling = \"linear\""});
  expect_refused(rope({{"rope_type", "default"}, {"rope_theta", 1.5}}), {"rope_theta = 1.5"});
  for (const std::string key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    auto text = good(architecture::llama);
    text["rope_scaling"].erase(key);
    expect_refused(text.dump(), {key, "missing"});
  }
  auto crossed = good(architecture::llama);
  crossed["rope_scaling"]["low_freq_factor"] = 4.0;
  expect_refused(crossed.dump(), {"low_freq_factor = 4.0", "less than"});
  auto twice = good(architecture::llama);
  twice["rope_parameters"] = {{"rope_type", "default"}};
  expect_refused(twice.dump(), {"contradicts rope_scaling"});
}

TEST(load_config, refuses_eos_ids_outside_of_the_vocabulary) {
  for (const auto& value : {json(200), json(-1), json({1, 200}), json("</s>"), json(1.5)})
    expect_refused(edited({{"eos_token_id", value}}).dump(), {"eos_token_id = " + value.dump()});
  expect_refused(good().dump(), {"generation_config.json", "eos_token_id = 4711"},
                 R"({"eos_token_id": 4711})");
  expect_refused(good().dump(), {"generation_config.json", "JSON"}, "{");
}

TEST(load_config, refuses_text_that_is_not_one_json_object) {
  expect_refused("", {"JSON"});
  expect_refused("[1]", {"array", "object"});
  expect_refused("{\"a\n\": ", {"JSON"});
  expect_refused(std::string("\0\xff{", 3), {"JSON"});
  expect_refused(std::string(100000, '['), {"JSON"});
  expect_refused(R"({"hidden_size": 64, "hidden_size": 128})", {"hidden_size", "twice"});
}

TEST(load_config, names_a_directory_without_config) {
  const temporary_directory directory;
  const auto config = load_config(directory.path());
  ASSERT_FALSE(config.has_value());
  EXPECT_EQ(errc::io_failed, config.error().code);
  EXPECT_NE(std::string::npos, config.error().detail.find((directory / "config.json").string()));
  std::filesystem::create_directory(directory / "config.json");
  EXPECT_EQ(errc::io_failed, load_config(directory.path()).error().code);
}

TEST(load_config, never_crashes_on_a_config_cut_anywhere) {
  const auto text = good(architecture::llama).dump();
  for (std::size_t length = 0; length < text.size(); ++length)
    EXPECT_FALSE(load(text.substr(0, length)).has_value()) << length;
}

} // namespace
} // namespace rollcast
