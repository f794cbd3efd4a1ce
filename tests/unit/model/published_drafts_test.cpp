// Goal: the draft layers of published models are claimed whole: every tensor of their files has its
// place under its published name and shape, and none is missing or unknown.
// Method: files with the published config.json, names, dtypes and shapes, whose data is a hole, are
// loaded by who wants them no more: `cancelled` comes once names and shapes are right and before a
// weight is read. Then a tensor of each kind is left out, and given another shape.

#include "engine/model/checkpoint.hpp"
#include "engine/model/draft_model.hpp"
#include "engine/model/fp8_blocks.hpp"
#include "engine/model/tensor_plan.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

namespace rollcast::test {

namespace {

using shape = std::vector<std::size_t>;

std::size_t elements_of(const shape& extents) {
  return std::accumulate(extents.begin(), extents.end(), std::size_t{1}, std::multiplies<>());
}

struct published_tensor {
  std::string dtype;
  shape extents;
  std::string first = {}; ///< Its first bytes; the rest is a hole.

  std::size_t bytes() const {
    static const std::map<std::string, std::size_t> sizes{{"BOOL", 1}, {"F8_E4M3", 1}, {"BF16", 2},
                                                          {"F16", 2},  {"F32", 4},     {"I64", 8}};
    return elements_of(extents) * sizes.at(dtype);
  }
};

struct published_files {
  std::string config;
  std::map<std::string, published_tensor> tensors = {};

  void add(const std::string& name, shape extents, const std::string& dtype = "BF16") {
    EXPECT_TRUE(tensors.emplace(name, published_tensor{dtype, std::move(extents)}).second) << name;
  }
  std::size_t bytes() const {
    std::size_t out = 0;
    for (const auto& [name, tensor] : tensors)
      out += tensor.bytes();
    return out;
  }
  void write(const std::filesystem::path& directory) const;
};

void published_files::write(const std::filesystem::path& directory) const {
  std::ofstream{directory / "config.json"} << config;
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::size_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.extents},
                    {"data_offsets", {at, at + tensor.bytes()}}};
    at += tensor.bytes();
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  const auto file = directory / "model.safetensors";
  std::ofstream out{file, std::ios::binary};
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << text;
  at = sizeof length + text.size();
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.first.empty())
      out.seekp(static_cast<std::streamoff>(at)) << tensor.first;
    at += tensor.bytes();
  }
  out.close();
  ASSERT_TRUE(out.good());
  std::filesystem::resize_file(file, at);
}

/// What the loader says of the files, for a caller who wants their weights no more.
error said_of(const published_files& files, draft_kind kind, const model_config& target) {
  const temporary_directory directory;
  files.write(directory.path());
  std::stop_source nobody;
  nobody.request_stop();
  load_options options;
  options.stop = nobody.get_token();
  const auto got = load_draft(directory.path(), kind, target, kernels::arithmetic::bf16, options);
  EXPECT_FALSE(got) << "no weight is there to be loaded";
  return got ? error{} : got.error();
}

/// "model.layers.61.mlp.experts.7.up_proj.weight" without its numbers.
std::string kind_of(std::string name) {
  std::erase_if(name, [](char c) { return c >= '0' && c <= '9'; });
  return name;
}

/// @param optional  Endings of names that may be left out, and have any shape: copies of what is
///                  the target's.
void expect_all_claimed(const published_files& files, draft_kind kind, const model_config& target,
                        const std::vector<std::string>& optional) {
  const auto whole = said_of(files, kind, target);
  EXPECT_EQ(whole.code, errc::cancelled) << whole.detail;
  std::set<std::string> kinds;
  for (const auto& [name, tensor] : files.tensors) {
    const auto ends = [&name = name](const std::string& ending) { return name.ends_with(ending); };
    if (!kinds.insert(kind_of(name)).second || std::any_of(optional.begin(), optional.end(), ends))
      continue;
    auto broken = files;
    broken.tensors.erase(name);
    auto said = said_of(broken, kind, target);
    EXPECT_EQ(said.code, errc::bad_checkpoint) << "without " << name << ": " << said.detail;
    broken = files;
    ++broken.tensors.at(name).extents.front();
    said = said_of(broken, kind, target);
    EXPECT_EQ(said.code, errc::bad_checkpoint) << name << ": " << said.detail;
    EXPECT_NE(said.detail.find("tensor " + name), std::string::npos) << said.detail;
  }
  auto more = files;
  const std::string unknown = files.tensors.begin()->first + "_too";
  more.add(unknown, {1});
  const auto said = said_of(more, kind, target);
  EXPECT_EQ(said.code, errc::bad_checkpoint) << said.detail;
  EXPECT_NE(said.detail.find("unknown: " + unknown), std::string::npos) << said.detail;
}

/// The config that a target's own directory has.
model_config target_of(const published_files& files) {
  const temporary_directory directory;
  std::ofstream{directory / "config.json"} << files.config;
  const auto config = load_config(directory.path());
  EXPECT_TRUE(config) << config.error().detail;
  return config ? *config : model_config{};
}

// -- MTP layers ---------------------------------------------------------------

void add_ffn(published_files& files, const std::string& at, std::size_t hidden, std::size_t inner) {
  files.add(at + "gate_proj.weight", {inner, hidden});
  files.add(at + "up_proj.weight", {inner, hidden});
  files.add(at + "down_proj.weight", {hidden, inner});
}

/// Attention of heads of 128 over 8 key and value heads, with the biases of q, k and v.
void add_biased_attention(published_files& files, const std::string& at, std::size_t hidden,
                          std::size_t heads) {
  const auto add = [&](const std::string& name, std::size_t rows) {
    files.add(at + name + ".weight", {rows, hidden});
    files.add(at + name + ".bias", {rows});
  };
  add("q_proj", 128 * heads);
  add("k_proj", 1024);
  add("v_proj", 1024);
  files.add(at + "o_proj.weight", {hidden, 128 * heads});
}

/// What a NextN layer has but attention and the copies of the target's embedding and head.
void add_next_layer(published_files& files, const std::string& at, std::size_t hidden,
                    std::size_t experts, std::size_t inner) {
  for (const auto* norm :
       {"enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "shared_head.norm"})
    files.add(at + norm + ".weight", {hidden});
  files.add(at + "eh_proj.weight", {hidden, 2 * hidden});
  files.add(at + "mlp.gate.weight", {experts, hidden});
  files.add(at + "mlp.gate.e_score_correction_bias", {experts}, "F32");
  add_ffn(files, at + "mlp.shared_experts.", hidden, inner);
  for (std::size_t e = 0; e < experts; ++e)
    add_ffn(files, at + "mlp.experts." + std::to_string(e) + ".", hidden, inner);
}

const std::vector<std::string> copies{"embed_tokens.weight", "shared_head.head.weight"};

void add_copies(published_files& files, const std::string& at, std::size_t vocabulary,
                std::size_t hidden) {
  for (const auto& name : copies)
    files.add(at + name, {vocabulary, hidden});
}

TEST(published_drafts, of_mimo_7b_rl_are_claimed) {
  published_files files{R"({"architectures": ["MiMoForCausalLM"], "model_type": "mimo",
    "attention_bias": true, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 32768,
    "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36,
    "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": null, "rope_theta": 640000, "sliding_window": 32768,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
    "use_sliding_window": false, "vocab_size": 151680})"};
  const std::string at = "model.mtp_layers.0.";
  for (const auto* norm : {"token_layernorm", "hidden_layernorm", "input_layernorm",
                           "post_attention_layernorm", "final_layernorm"})
    files.add(at + norm + ".weight", {4096});
  files.add(at + "input_proj.weight", {4096, 8192});
  add_biased_attention(files, at + "self_attn.", 4096, 32);
  add_ffn(files, at + "mlp.", 4096, 11008);
  EXPECT_EQ(files.tensors.size(), 16u);
  expect_all_claimed(files, draft_kind::mtp, target_of(files), {});
}

TEST(published_drafts, of_glm_4_5_air_are_claimed) {
  published_files files{R"({"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe",
    "attention_bias": true, "attention_dropout": 0.0, "pad_token_id": 151329,
    "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "partial_rotary_factor": 0.5, "initializer_range": 0.02,
    "intermediate_size": 10944, "max_position_embeddings": 131072, "moe_intermediate_size": 1408,
    "norm_topk_prob": true, "num_attention_heads": 96, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 128, "n_shared_experts": 1, "routed_scaling_factor": 1.0,
    "num_experts_per_tok": 8, "first_k_dense_replace": 1, "num_hidden_layers": 46,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 1000000,
    "num_nextn_predict_layers": 1, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "use_qk_norm": false, "vocab_size": 151552})"};
  const std::string at = "model.layers.46.";
  add_next_layer(files, at, 4096, 128, 1408);
  add_copies(files, at, 151552, 4096);
  add_biased_attention(files, at + "self_attn.", 4096, 96);
  EXPECT_EQ(files.tensors.size(), 8u + 5 + 3 * 128 + 7);
  expect_all_claimed(files, draft_kind::mtp, target_of(files), copies);
}

// vllm #27597: a loader that waited for the copies, which GLM-4.6's files leave out.
TEST(published_drafts, of_glm_4_6_are_claimed) {
  published_files files{R"({"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe",
    "attention_bias": true, "attention_dropout": 0.0, "pad_token_id": 151329,
    "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "partial_rotary_factor": 0.5, "initializer_range": 0.02,
    "intermediate_size": 12288, "max_position_embeddings": 202752, "moe_intermediate_size": 1536,
    "norm_topk_prob": true, "num_attention_heads": 96, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 160, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "num_hidden_layers": 92,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 1000000,
    "num_nextn_predict_layers": 1, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "use_qk_norm": true, "vocab_size": 151552})"};
  const std::string at = "model.layers.92.";
  add_next_layer(files, at, 5120, 160, 1536);
  add_biased_attention(files, at + "self_attn.", 5120, 96);
  files.add(at + "self_attn.q_norm.weight", {128});
  files.add(at + "self_attn.k_norm.weight", {128});
  EXPECT_EQ(files.tensors.size(), 6u + 5 + 3 * 160 + 9);
  expect_all_claimed(files, draft_kind::mtp, target_of(files), {});
}

/// Layer 61 of DeepSeek-V3, as its converter to bf16 leaves it.
published_files deepseek_v3() {
  published_files files{R"({"architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3", "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
    "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
    "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
    "quant_method": "fp8", "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "use_cache": true, "v_head_dim": 128, "vocab_size": 129280})"};
  const std::string at = "model.layers.61.";
  add_next_layer(files, at, 7168, 256, 2048);
  add_copies(files, at, 129280, 7168);
  files.add(at + "self_attn.q_a_proj.weight", {1536, 7168});
  files.add(at + "self_attn.q_a_layernorm.weight", {1536});
  files.add(at + "self_attn.q_b_proj.weight", {24576, 1536});
  files.add(at + "self_attn.kv_a_proj_with_mqa.weight", {576, 7168});
  files.add(at + "self_attn.kv_a_layernorm.weight", {512});
  files.add(at + "self_attn.kv_b_proj.weight", {32768, 512});
  files.add(at + "self_attn.o_proj.weight", {7168, 16384});
  return files;
}

/// As published: what is multiplied in a layer is FP8 with scales, but the router and `eh_proj`.
published_files as_fp8(const published_files& wide) {
  published_files out{wide.config};
  for (const auto& [name, tensor] : wide.tensors) {
    const bool kept = tensor.extents.size() == 1 || name.ends_with("mlp.gate.weight")
                      || name.find("_proj") == std::string::npos
                      || name.ends_with("eh_proj.weight");
    out.add(name, tensor.extents, kept ? tensor.dtype : "F8_E4M3");
    const auto blocks = [](std::size_t extent) { return (extent + fp8_block - 1) / fp8_block; };
    if (!kept)
      out.add(name + "_scale_inv", {blocks(tensor.extents[0]), blocks(tensor.extents[1])}, "F32");
  }
  return out;
}

TEST(published_drafts, of_deepseek_v3_are_claimed) {
  const auto files = deepseek_v3();
  expect_all_claimed(files, draft_kind::mtp, target_of(files), copies);
  std::size_t own = 0;
  for (const auto& [name, tensor] : files.tensors)
    if (!name.ends_with(copies[0]) && !name.ends_with(copies[1]))
      own += elements_of(tensor.extents);
  EXPECT_EQ(own, 11'610'068'224u); // "11.5B unique parameters", its README_WEIGHTS.md says
}

TEST(published_drafts, of_deepseek_v3_with_their_fp8_scales_are_those_of_the_wide_file) {
  const auto wide = deepseek_v3();
  const auto files = as_fp8(wide);
  // A listing of the whole published checkpoint has 91,991 tensors of 688,574,839,360 bytes.
  published_files base{wide.config};
  for (const auto& tensor : plan_tensors(target_of(wide)))
    base.add(tensor.name, tensor.shape, tensor.name.ends_with("bias") ? "F32" : "BF16");
  base = as_fp8(base);
  EXPECT_EQ(base.tensors.size() + files.tensors.size(), 91'991u);
  EXPECT_EQ(base.bytes() + files.bytes(), 688'574'839'360u);

  const temporary_directory directory;
  files.write(directory.path());
  const auto opened = checkpoint::open(directory.path());
  ASSERT_TRUE(opened) << opened.error().detail;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : wide.tensors) {
    names.push_back(name);
    const auto type = opened->type_of(name);
    ASSERT_TRUE(type) << type.error().detail;
    EXPECT_EQ(*type, tensor.dtype == "F32" ? kernels::dtype::f32 : kernels::dtype::bf16) << name;
  }
  const auto found = opened->names();
  EXPECT_EQ(std::vector<std::string>(found.begin(), found.end()), names);
  // The last block of its scales is half a block.
  const auto view = opened->tensor("model.layers.61.self_attn.kv_a_proj_with_mqa.weight");
  ASSERT_TRUE(view) << view.error().detail;
  EXPECT_EQ(view->shape, (shape{576, 7168}));
}

TEST(published_drafts, of_kimi_k2_are_none) {
  published_files files{R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2",
    "attention_bias": false, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "bos_token_id": 163584, "eos_token_id": 163585, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 131072,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 384,
    "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 64,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
    "quant_method": "fp8", "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 50000.0, "routed_scaling_factor": 2.827, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 1, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "use_cache": true, "v_head_dim": 128, "vocab_size": 163840})"};
  const auto config = target_of(files);
  for (const auto* name : {"model.layers.61.eh_proj.weight", "model.layers.61.enorm.weight",
                           "model.layers.61.self_attn.o_proj.weight", "model.mtp_layers.0.x"})
    EXPECT_FALSE(is_known_extra(config, name)) << name;
  for (const auto& tensor : plan_tensors(config))
    EXPECT_FALSE(tensor.name.starts_with("model.layers.61.")) << tensor.name;
  files.add("model.embed_tokens.weight", {163840, 7168});
  files.add("model.layers.60.input_layernorm.weight", {7168});
  const auto said = said_of(files, draft_kind::mtp, config);
  EXPECT_EQ(said.code, errc::bad_config);
  EXPECT_NE(said.detail.find("num_nextn_predict_layers = 0"), std::string::npos) << said.detail;
}

// -- EAGLE-3 heads ------------------------------------------------------------

/// A head with 8 key and value heads of 128 that can say 32,000 tokens, of `vocabulary`.
void add_eagle3(published_files& files, std::size_t hidden, std::size_t heads, std::size_t inner,
                std::size_t vocabulary, const std::string& dtype) {
  const std::string at = "midlayer.";
  for (const auto* norm : {"midlayer.hidden_norm", "midlayer.input_layernorm",
                           "midlayer.post_attention_layernorm", "norm"})
    files.add(norm + std::string{".weight"}, {hidden}, dtype);
  files.add("fc.weight", {hidden, 3 * hidden}, dtype);
  files.add(at + "self_attn.q_proj.weight", {128 * heads, 2 * hidden}, dtype);
  files.add(at + "self_attn.k_proj.weight", {1024, 2 * hidden}, dtype);
  files.add(at + "self_attn.v_proj.weight", {1024, 2 * hidden}, dtype);
  files.add(at + "self_attn.o_proj.weight", {hidden, 128 * heads}, dtype);
  files.add(at + "mlp.gate_proj.weight", {inner, hidden}, dtype);
  files.add(at + "mlp.up_proj.weight", {inner, hidden}, dtype);
  files.add(at + "mlp.down_proj.weight", {hidden, inner}, dtype);
  files.add("lm_head.weight", {32000, hidden}, dtype);
  files.add("d2t", {32000}, "I64"); // a hole is differences of 0: the first 32,000 tokens
  files.add("t2d", {vocabulary}, "BOOL");
  files.tensors.at("t2d").first = std::string(32000, '\1');
}

model_config eagle3_target(std::size_t hidden, std::size_t layers, std::size_t vocabulary) {
  model_config c;
  c.hidden = hidden;
  c.layers = layers;
  c.vocabulary = vocabulary;
  return c;
}

TEST(published_drafts, of_eagle3_llama_3_1_8b_are_claimed) {
  published_files files{R"({"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama",
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 2048,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1, "pad_token_id": 0,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": false, "torch_dtype": "float16",
    "transformers_version": "4.28.1", "use_cache": true, "vocab_size": 128256,
    "draft_vocab_size": 32000})"};
  add_eagle3(files, 4096, 32, 14336, 128256, "F16");
  EXPECT_EQ(files.bytes(), 849'763'584u); // "811 MB" of its card are 2^20 bytes each
  expect_all_claimed(files, draft_kind::eagle3, eagle3_target(4096, 32, 128256), {"t2d"});
}

TEST(published_drafts, of_eagle3_qwen3_32b_by_specforge_are_claimed) {
  published_files files{R"({"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama",
    "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
    "initializer_range": 0.02, "intermediate_size": 25600, "max_position_embeddings": 40960,
    "max_window_layers": 64, "num_attention_heads": 64, "num_hidden_layers": 1,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
    "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 151936,
    "draft_vocab_size": 32000})"};
  add_eagle3(files, 5120, 64, 25600, 151936, "BF16");
  expect_all_claimed(files, draft_kind::eagle3, eagle3_target(5120, 64, 151936), {"t2d"});
}

} // namespace

} // namespace rollcast::test
