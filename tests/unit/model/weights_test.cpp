// Goal: loading puts every checkpoint value in its place, refuses what does not belong, and is a
// function of the checkpoint's content alone.
// Method: the packed matrices are read back by the layout that kernels/gemm.hpp promises, element
// by element; one thing is broken in a good checkpoint and the refusal is read.

#include "engine/model/checkpoint.hpp"
#include "engine/model/finite.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/weights.hpp"
#include "tests/support/tiny_model.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace rollcast {
namespace {

using kernels::arithmetic;
using kernels::dtype;
using loaded = result<std::shared_ptr<const model_weights>>;

loaded load(const std::filesystem::path& directory, arithmetic how = arithmetic::f32,
            const load_options& options = {}) {
  const auto config = load_config(directory);
  if (!config)
    return fail(config);
  auto source = checkpoint::open(directory);
  if (!source)
    return fail(source);
  return model_weights::load(*config, *source, how, options);
}

/// Element [n, k] of a packed matrix: panels of 32 columns; bf16 in pairs of k, f32 singly.
float unpacked(const kernels::packed_matrix& m, std::size_t n, std::size_t k) {
  const std::size_t pairs = (m.k + 1) / 2;
  const std::size_t panel = n / 32;
  const std::size_t column = n % 32;
  if (m.type == dtype::bf16)
    return element_at({m.data, packed_bytes(m.type, m.n, m.k)}, m.type,
                      ((panel * pairs + k / 2) * 32 + column) * 2 + k % 2);
  return element_at({m.data, packed_bytes(m.type, m.n, m.k)}, m.type,
                    (panel * pairs * 2 + k) * 32 + column);
}

float stored(const tensor_view& view, std::size_t row, std::size_t column) {
  return element_at(view.bytes, view.type, row * view.shape[1] + column);
}

float expected(float value, dtype packed) {
  return packed == dtype::bf16 ? kernels::widen_bf16(kernels::round_bf16(value)) : value;
}

/// Compares rows [begin, begin + rows of the tensor) of a packed matrix with a checkpoint tensor.
void expect_packed(const kernels::packed_matrix& matrix, std::size_t begin,
                   const checkpoint& source, const std::string& name) {
  const auto view = source.tensor(name);
  ASSERT_TRUE(view.has_value()) << name;
  ASSERT_EQ(view->shape[1], matrix.k) << name;
  for (std::size_t r = 0; r < view->shape[0]; ++r) {
    for (std::size_t c = 0; c < view->shape[1]; ++c)
      ASSERT_EQ(expected(stored(*view, r, c), matrix.type), unpacked(matrix, begin + r, c))
        << name << "[" << r << ", " << c << "]";
  }
}

void expect_vector(std::span<const float> vector, const checkpoint& source,
                   const std::string& name) {
  const auto view = source.tensor(name);
  ASSERT_TRUE(view.has_value()) << name;
  ASSERT_EQ(view->shape[0], vector.size()) << name;
  for (std::size_t i = 0; i < vector.size(); ++i)
    ASSERT_EQ(element_at(view->bytes, view->type, i), vector[i]) << name << "[" << i << "]";
}

void expect_experts(const model_weights& weights, std::size_t index, const checkpoint& source) {
  const auto& config = weights.config();
  const auto& layer = weights.layers()[index];
  const std::string at = "model.layers." + std::to_string(index) + ".mlp.";
  EXPECT_EQ(0u, layer.gate_up.n);
  EXPECT_EQ(config.experts.count, layer.router.n);
  expect_packed(layer.router, 0, source, at + "gate.weight");
  if (config.experts.choice_bias)
    expect_vector(layer.choice_bias, source, at + "gate.e_score_correction_bias");
  if (const std::size_t shared = config.experts.shared * config.experts.intermediate; shared != 0) {
    EXPECT_EQ(2 * shared, layer.shared_gate_up.n);
    expect_packed(layer.shared_gate_up, 0, source, at + "shared_experts.gate_proj.weight");
    expect_packed(layer.shared_gate_up, shared, source, at + "shared_experts.up_proj.weight");
    expect_packed(layer.shared_down, 0, source, at + "shared_experts.down_proj.weight");
  }
  ASSERT_EQ(config.experts.count, layer.experts.size());
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    const auto& expert = layer.experts[e];
    const std::string of = at + "experts." + std::to_string(e) + ".";
    EXPECT_EQ(2 * config.experts.intermediate, expert.gate_up.n);
    expect_packed(expert.gate_up, 0, source, of + "gate_proj.weight");
    expect_packed(expert.gate_up, config.experts.intermediate, source, of + "up_proj.weight");
    expect_packed(expert.down, 0, source, of + "down_proj.weight");
  }
}

/// The projections around attention over a latent.
void expect_latent(const model_weights& weights, std::size_t index, const checkpoint& source) {
  const auto& config = weights.config();
  const auto& latent = config.latent;
  const auto& layer = weights.layers()[index];
  const std::string at = "model.layers." + std::to_string(index) + ".self_attn.";
  EXPECT_EQ(latent.q_rank + latent.rank + latent.rope, layer.qkv.n);
  expect_packed(layer.qkv, 0, source, at + "q_a_proj.weight");
  expect_packed(layer.qkv, latent.q_rank, source, at + "kv_a_proj_with_mqa.weight");
  expect_packed(layer.q_b, 0, source, at + "q_b_proj.weight");
  expect_vector(layer.q_a_norm, source, at + "q_a_layernorm.weight");
  expect_vector(layer.kv_a_norm, source, at + "kv_a_layernorm.weight");
  const auto whole = source.tensor(at + "kv_b_proj.weight");
  ASSERT_TRUE(whole.has_value());
  for (std::size_t head = 0; head < config.heads; ++head)
    for (std::size_t c = 0; c < latent.rank; ++c) {
      const std::size_t row = head * (latent.nope + latent.value);
      for (std::size_t i = 0; i < latent.nope; ++i)
        ASSERT_EQ(expected(stored(*whole, row + i, c), layer.absorb.type),
                  unpacked(layer.absorb, head * latent.rank + c, i));
      for (std::size_t j = 0; j < latent.value; ++j)
        ASSERT_EQ(expected(stored(*whole, row + latent.nope + j, c), layer.expand.type),
                  unpacked(layer.expand, head * latent.value + j, c));
    }
}

void expect_layer(const model_weights& weights, std::size_t index, const checkpoint& source) {
  const auto& config = weights.config();
  const auto& layer = weights.layers()[index];
  const std::string at = "model.layers." + std::to_string(index) + ".";
  const std::size_t q = config.heads * config.head_dim;
  const std::size_t kv = config.kv_heads * config.head_dim;
  if (config.latent.rank != 0) {
    expect_latent(weights, index, source);
  } else {
    EXPECT_EQ(q + 2 * kv, layer.qkv.n);
    expect_packed(layer.qkv, 0, source, at + "self_attn.q_proj.weight");
    expect_packed(layer.qkv, q, source, at + "self_attn.k_proj.weight");
    expect_packed(layer.qkv, q + kv, source, at + "self_attn.v_proj.weight");
  }
  expect_packed(layer.o, 0, source, at + "self_attn.o_proj.weight");
  if (config.is_sparse(index)) {
    expect_experts(weights, index, source);
  } else {
    EXPECT_EQ(2 * config.intermediate, layer.gate_up.n);
    expect_packed(layer.gate_up, 0, source, at + "mlp.gate_proj.weight");
    expect_packed(layer.gate_up, config.intermediate, source, at + "mlp.up_proj.weight");
    expect_packed(layer.down, 0, source, at + "mlp.down_proj.weight");
  }
  expect_vector(layer.input_norm, source, at + "input_layernorm.weight");
  expect_vector(layer.post_norm, source, at + "post_attention_layernorm.weight");
  ASSERT_EQ(config.attention_bias ? q + 2 * kv : 0, layer.qkv_bias.size());
  if (config.attention_bias) {
    const std::span<const float> bias = layer.qkv_bias;
    expect_vector(bias.subspan(0, q), source, at + "self_attn.q_proj.bias");
    expect_vector(bias.subspan(q, kv), source, at + "self_attn.k_proj.bias");
    expect_vector(bias.subspan(q + kv), source, at + "self_attn.v_proj.bias");
  }
  ASSERT_EQ(config.qk_norm ? config.head_dim : 0, layer.q_norm.size());
  if (config.qk_norm) {
    expect_vector(layer.q_norm, source, at + "self_attn.q_norm.weight");
    expect_vector(layer.k_norm, source, at + "self_attn.k_norm.weight");
  }
}

struct storage_case {
  architecture family;
  dtype stored;
  arithmetic how;
  dtype packed;
};

class every_storage : public testing::TestWithParam<storage_case> {};

TEST_P(every_storage, puts_every_value_in_its_place) {
  const auto& about = GetParam();
  const temporary_directory directory;
  write_tiny_model(directory.path(), about.family, 5, about.stored, 2);
  const auto weights = load(directory.path(), about.how);
  ASSERT_TRUE(weights.has_value()) << weights.error().detail;
  const auto source = std::move(*checkpoint::open(directory.path()));
  const auto& w = **weights;
  EXPECT_EQ(about.packed, w.layers()[0].qkv.type);
  EXPECT_EQ(about.packed, w.lm_head().type);
  for (std::size_t layer = 0; layer < w.config().layers; ++layer)
    expect_layer(w, layer, source);
  expect_vector(w.final_norm(), source, "model.norm.weight");
  const auto embedding = source.tensor("model.embed_tokens.weight");
  EXPECT_EQ(about.stored, w.embedding().type) << "the embedding is not rounded";
  ASSERT_EQ(embedding->bytes.size(), w.embedding().bytes.size());
  EXPECT_EQ(
    0, std::memcmp(embedding->bytes.data(), w.embedding().bytes.data(), embedding->bytes.size()));
  expect_packed(w.lm_head(), 0, source,
                w.config().tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  for (const auto* matrix : {&w.layers()[0].qkv, &w.layers()[1].down, &w.lm_head()})
    EXPECT_EQ(0u, reinterpret_cast<std::uintptr_t>(matrix->data) % 64);
}

INSTANTIATE_TEST_SUITE_P(
  storages, every_storage,
  testing::Values(
    storage_case{architecture::qwen3, dtype::bf16, arithmetic::f32, dtype::bf16},
    storage_case{architecture::qwen3, dtype::f32, arithmetic::bf16, dtype::bf16},
    storage_case{architecture::qwen2, dtype::f16, arithmetic::f32, dtype::f32},
    storage_case{architecture::llama, dtype::f32, arithmetic::f32, dtype::f32},
    storage_case{architecture::mimo, dtype::bf16, arithmetic::bf16, dtype::bf16},
    storage_case{architecture::mimo, dtype::f16, arithmetic::bf16, dtype::bf16},
    storage_case{architecture::glm4_moe, dtype::bf16, arithmetic::f32, dtype::bf16},
    storage_case{architecture::deepseek_v3, dtype::bf16, arithmetic::f32, dtype::bf16},
    storage_case{architecture::deepseek_v3, dtype::f16, arithmetic::f32, dtype::f32},
    storage_case{architecture::qwen3_moe, dtype::bf16, arithmetic::f32, dtype::bf16},
    storage_case{architecture::qwen3_moe, dtype::f32, arithmetic::bf16, dtype::bf16}));

TEST(model_weights, never_round_a_router) {
  const temporary_directory directory;
  write_tiny_model(directory.path(), architecture::qwen3_moe, 5, dtype::f32);
  const auto weights = load(directory.path(), arithmetic::bf16);
  ASSERT_TRUE(weights.has_value()) << weights.error().detail;
  EXPECT_EQ(dtype::f32, (*weights)->layers()[1].router.type);
  EXPECT_EQ(dtype::bf16, (*weights)->layers()[1].experts[0].down.type);
}

TEST(model_weights, pack_matrices_in_more_than_one_run) {
  // Loading checks and packs 256 KiB at a time; this head has 672 KB, this gate 384 KB.
  auto config = tiny_config(architecture::llama);
  config.vocabulary = 5250;
  config.intermediate = 3000;
  config.layers = 1;
  const temporary_directory directory;
  ASSERT_TRUE(write_random_model(directory.path(), config, 2, dtype::bf16).has_value());
  const auto weights = load(directory.path());
  ASSERT_TRUE(weights.has_value()) << weights.error().detail;
  const auto source = std::move(*checkpoint::open(directory.path()));
  expect_layer(**weights, 0, source);
  expect_packed((*weights)->lm_head(), 0, source, "lm_head.weight");
}

TEST(model_weights, load_the_checkpoints_that_transformers_saved) {
  for (const std::string family : {"qwen3", "qwen2", "llama", "mimo", "qwen3_moe", "glm4_moe",
                                   "deepseek_v3", "moonlight", "kimi_k2"}) {
    const auto weights =
      load(std::filesystem::path(ROLLCAST_SOURCE_DIR) / "tests/fixtures/models" / family);
    ASSERT_TRUE(weights.has_value()) << weights.error().detail;
  }
}

TEST(model_weights, are_the_same_for_any_shards_threads_and_arithmetic) {
  const temporary_directory one;
  const temporary_directory three;
  write_tiny_model(one.path(), architecture::llama, 9, dtype::bf16, 1);
  write_tiny_model(three.path(), architecture::llama, 9, dtype::bf16, 3);
  const auto a = load(one.path());
  ASSERT_TRUE(a.has_value()) << a.error().detail;
  for (const std::size_t threads : {0u, 1u, 2u, 7u}) {
    const auto b = load(three.path(), arithmetic::f32, {.threads = threads});
    ASSERT_TRUE(b.has_value()) << b.error().detail;
    EXPECT_EQ((*a)->hash(), (*b)->hash());
    ASSERT_EQ((*a)->arena_bytes(), (*b)->arena_bytes());
    EXPECT_EQ(
      0, std::memcmp((*a)->layers()[0].qkv.data, (*b)->layers()[0].qkv.data, (*a)->arena_bytes()));
  }
  EXPECT_EQ((*a)->hash(), (*load(one.path(), arithmetic::bf16))->hash());
}

TEST(model_weights, keep_their_hash) {
  // Both values were computed from the definition in engine/model/README.md with Python's xxhash,
  // the second over the file that `write_tiny_model` wrote.
  const auto fixture =
    load(std::filesystem::path(ROLLCAST_SOURCE_DIR) / "tests/fixtures/models/qwen3");
  ASSERT_TRUE(fixture.has_value()) << fixture.error().detail;
  EXPECT_EQ("a4963ff304a8a27974ad195e19346101", to_string((*fixture)->hash()))
    << "workers of two builds would refuse each other's weights";
  const temporary_directory directory;
  write_tiny_model(directory.path(), architecture::qwen3, 1, dtype::bf16);
  const auto random = load(directory.path());
  ASSERT_TRUE(random.has_value()) << random.error().detail;
  EXPECT_EQ("31df2ba1985136431889c743a00a30d4", to_string((*random)->hash()))
    << "random weights are not what they were";
}

TEST(model_weights, change_their_hash_with_any_byte) {
  const temporary_directory directory;
  write_tiny_model(directory.path(), architecture::qwen3);
  const auto before = (*load(directory.path()))->hash();
  const auto path = directory / "model.safetensors";
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  const auto last = static_cast<char>(file.peek() ^ 1);
  file.seekp(-1, std::ios::end);
  file.put(last);
  file.close();
  EXPECT_NE(before, (*load(directory.path()))->hash());
}

TEST(model_weights, outlive_their_files) {
  const temporary_directory directory;
  write_tiny_model(directory.path(), architecture::qwen2);
  const auto weights = load(directory.path());
  ASSERT_TRUE(weights.has_value()) << weights.error().detail;
  const auto first = element_at((*weights)->embedding().bytes, (*weights)->embedding().type, 0);
  std::filesystem::resize_file(directory / "model.safetensors", 1);
  EXPECT_EQ(first, element_at((*weights)->embedding().bytes, (*weights)->embedding().type, 0));
}

// -- what is refused ----------------------------------------------------------

std::string read(const std::filesystem::path& path) {
  std::stringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

/// A good checkpoint whose files can be edited as text.
class edited_model {
public:
  explicit edited_model(architecture family, dtype type = dtype::bf16) {
    write_tiny_model(directory_.path(), family, 1, type);
  }

  /// Replaces text of the same length, so that no offset moves.
  void replace(const std::string& file, const std::string& from, const std::string& to) {
    auto text = read(directory_ / file);
    const auto at = text.find(from);
    ASSERT_NE(std::string::npos, at) << from;
    ASSERT_EQ(from.size(), to.size());
    text.replace(at, from.size(), to);
    std::ofstream(directory_ / file, std::ios::binary) << text;
  }

  /// Overwrites bytes of a tensor.
  void poke(std::string_view tensor, std::size_t element, std::uint32_t bits) {
    const auto path = directory_ / "model.safetensors";
    auto text = read(path);
    const auto source = std::move(*checkpoint::open(directory_.path()));
    const auto view = source.tensor(tensor);
    const auto file = parse_safetensors(std::as_bytes(std::span<const char>(text)), "copy");
    const auto size = kernels::size_of(view->type);
    std::memcpy(&text[file->find(tensor)->second.begin + element * size], &bits, size);
    std::ofstream(path, std::ios::binary) << text;
  }

  const std::filesystem::path& path() const { return directory_.path(); }

private:
  temporary_directory directory_;
};

void expect_refused(const loaded& weights, const std::vector<std::string>& words) {
  ASSERT_FALSE(weights.has_value());
  const auto& detail = weights.error().detail;
  EXPECT_EQ(errc::bad_checkpoint, weights.error().code) << detail;
  EXPECT_EQ(std::string::npos, detail.find('\n')) << detail;
  for (const auto& word : words)
    EXPECT_NE(std::string::npos, detail.find(word)) << "no '" << word << "' in: " << detail;
}

TEST(model_weights, refuse_missing_and_unknown_tensors_by_name) {
  edited_model model(architecture::llama);
  model.replace("model.safetensors", "layers.1.mlp.up_proj.weight", "layers.1.mlp.up_prof.weight");
  expect_refused(load(model.path()), {"1 tensor missing: model.layers.1.mlp.up_proj.weight",
                                      "1 tensor unknown: model.layers.1.mlp.up_prof.weight"});
}

TEST(model_weights, name_five_tensors_and_count_the_rest) {
  edited_model model(architecture::qwen2);
  model.replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  expect_refused(load(model.path()), {"12 tensors missing: model.layers.2.input_layernorm.weight, "
                                      "model.layers.2.self_attn.q_proj.weight, ",
                                      ", ..."});
  model.replace("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1");
  expect_refused(load(model.path()), {"12 tensors unknown: model.layers.1.", ", ..."});
}

TEST(model_weights, refuse_a_checkpoint_of_another_family) {
  edited_model model(architecture::qwen2);
  model.replace("config.json", "Qwen2ForCausalLM", "LlamaForCausalLM");
  model.replace("config.json", "\"attention_bias\": true", "\"attention_bias\":false");
  expect_refused(load(model.path()), {"LlamaForCausalLM", "6 tensors unknown", "q_proj.bias"});
}

TEST(model_weights, refuse_a_wrong_shape_with_both_shapes) {
  edited_model model(architecture::qwen3);
  model.replace("config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 80");
  expect_refused(load(model.path()), {"model.safetensors", "model.layers.0.mlp.gate_proj.weight",
                                      "[96, 64]", "[80, 64]"});
}

TEST(model_weights, refuse_values_that_are_not_finite_by_index_and_value) {
  edited_model nan(architecture::qwen3);
  nan.poke("model.layers.1.mlp.down_proj.weight", 96 * 3 + 7, 0x7fc0);
  expect_refused(load(nan.path()), {"model.layers.1.mlp.down_proj.weight[3, 7] = nan"});
  EXPECT_TRUE(load(nan.path(), arithmetic::f32, {.allow_non_finite = true}).has_value());

  edited_model infinite(architecture::llama, dtype::f16);
  infinite.poke("model.norm.weight", 63, 0xfc00);
  expect_refused(load(infinite.path()), {"model.norm.weight[63] = -inf"});

  edited_model embedded(architecture::mimo, dtype::f32);
  embedded.poke("model.embed_tokens.weight", 64 * 199 + 63, 0x7f800000);
  expect_refused(load(embedded.path()), {"model.embed_tokens.weight[199, 63] = inf"});
}

TEST(model_weights, refuse_values_that_become_infinite_in_bf16) {
  edited_model model(architecture::qwen2, dtype::f32);
  model.poke("lm_head.weight", 5, 0x7f7f8000);
  EXPECT_TRUE(load(model.path()).has_value()) << "finite in f32";
  expect_refused(load(model.path(), arithmetic::bf16), {"lm_head.weight[0, 5] = 3.39", "bf16"});
  edited_model largest(architecture::qwen2, dtype::f32);
  largest.poke("lm_head.weight", 5, 0x7f7f7fff);
  EXPECT_TRUE(load(largest.path(), arithmetic::bf16).has_value()) << "rounds to a finite bf16";
}

TEST(model_weights, report_the_first_fault_whatever_the_threads) {
  edited_model model(architecture::qwen3);
  for (const auto* name :
       {"model.layers.1.self_attn.o_proj.weight", "model.layers.0.self_attn.v_proj.weight",
        "model.layers.1.mlp.up_proj.weight"})
    model.poke(name, 1, 0xff80);
  for (int round = 0; round < 20; ++round)
    expect_refused(load(model.path(), arithmetic::f32, {.threads = 4}),
                   {"model.layers.0.self_attn.v_proj.weight[0, 1] = -inf"});
}

TEST(model_weights, accept_the_extras_of_published_checkpoints) {
  const auto qwen3 = tiny_config(architecture::qwen3);
  EXPECT_TRUE(is_known_extra(qwen3, "lm_head.weight"));
  EXPECT_TRUE(is_known_extra(qwen3, "model.layers.0.self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(is_known_extra(qwen3, "model.mtp_layers.0.input_proj.weight"));
  const auto mimo = tiny_config(architecture::mimo);
  EXPECT_TRUE(is_known_extra(mimo, "model.mtp_layers.0.input_proj.weight"));
  EXPECT_FALSE(is_known_extra(mimo, "lm_head.weight"));
}

TEST(model_weights, accept_a_tied_head_only_if_it_is_the_embedding) {
  // A head beside a tied embedding: written untied, declared tied.
  edited_model model(architecture::llama);
  model.replace("config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\":  true");
  expect_refused(load(model.path()), {"lm_head.weight differs", "tie_word_embeddings"});
  {
    const auto source = std::move(*checkpoint::open(model.path()));
    const auto embedding = source.tensor("model.embed_tokens.weight");
    const auto head = source.tensor("lm_head.weight");
    auto text = read(model.path() / "model.safetensors");
    std::memcpy(&text[text.size() - head->bytes.size()], embedding->bytes.data(),
                head->bytes.size()); // The plan writes the head last.
    std::ofstream(model.path() / "again", std::ios::binary) << text;
  }
  std::filesystem::rename(model.path() / "again", model.path() / "model.safetensors");
  const auto weights = load(model.path());
  ASSERT_TRUE(weights.has_value()) << weights.error().detail;
}

// -- the check itself ---------------------------------------------------------

TEST(first_non_finite, finds_the_first_at_any_place_and_alignment) {
  constexpr std::size_t count = 3000; // Blocks are of 1024.
  for (const dtype type : {dtype::bf16, dtype::f16, dtype::f32}) {
    const std::size_t size = kernels::size_of(type);
    std::vector<std::byte> bytes(count * size + 1);
    const std::span<const std::byte> view(bytes.data() + 1, count * size);
    EXPECT_EQ(std::nullopt, first_non_finite(view, type, false));
    for (const std::size_t at : {0u, 1u, 1023u, 1024u, 2047u, 2048u, 2999u}) {
      for (const float bad :
           {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN()}) {
        std::fill(bytes.begin(), bytes.end(), std::byte{0x3c});
        const auto f32 = std::bit_cast<std::uint32_t>(bad);
        const std::uint32_t bits = type == dtype::f32    ? f32
                                   : type == dtype::bf16 ? f32 >> 16
                                   : std::isnan(bad)     ? 0xfe00u
                                                         : 0x7c00u;
        std::memcpy(&bytes[1 + at * size], &bits, size);
        std::memcpy(&bytes[1 + 2999 * size], &bits, size);
        EXPECT_EQ(at, first_non_finite(view, type, false));
      }
    }
  }
}

} // namespace
} // namespace rollcast
