#include "engine/model/config.hpp"

#include "engine/model/config_experts.hpp"
#include "engine/model/config_latent.hpp"
#include "engine/model/config_parts.hpp"
#include "engine/model/config_reader.hpp"
#include "engine/model/json_reader.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

namespace rollcast {

namespace {

// Bounds against absurd files. They are far above any model of these families and low enough that
// no product of four of them overflows 64 bits.
constexpr std::size_t config_bytes_max = std::size_t{16} << 20;
constexpr std::size_t hidden_max = 65536;
constexpr std::size_t layers_max = 1024;
constexpr std::size_t heads_max = 1024;
constexpr std::size_t head_dim_max = 256;
constexpr std::size_t intermediate_max = 1u << 20;
constexpr std::size_t vocabulary_max = 1u << 22;
constexpr std::size_t positions_max = 1u << 24;
constexpr std::size_t mtp_layers_max = 64;

struct family_row {
  architecture family;
  std::string_view name;
  std::string_view class_name;
};

constexpr std::array<family_row, 7> families{{
  {architecture::qwen3, "qwen3", "Qwen3ForCausalLM"},
  {architecture::qwen2, "qwen2", "Qwen2ForCausalLM"},
  {architecture::llama, "llama", "LlamaForCausalLM"},
  {architecture::mimo, "mimo", "MiMoForCausalLM"},
  {architecture::qwen3_moe, "qwen3_moe", "Qwen3MoeForCausalLM"},
  {architecture::glm4_moe, "glm4_moe", "Glm4MoeForCausalLM"},
  {architecture::deepseek_v3, "deepseek_v3", "DeepseekV3ForCausalLM"},
}};

const family_row& row_of(architecture family) noexcept {
  return families[static_cast<std::size_t>(family)];
}

} // namespace

architecture read_family(config_reader& in) {
  std::string accepted = "accepted: one of ";
  for (const auto& row : families)
    accepted += std::string(&row == families.data() ? "" : ", ") + std::string(row.class_name);
  const auto* value = in.find("architectures");
  if (value == nullptr) {
    in.refuse("key \"architectures\" is missing; " + accepted);
    return {};
  }
  if (value->is_array() && value->size() == 1 && value->front().is_string()) {
    const auto& name = value->front().get_ref<const std::string&>();
    for (const auto& row : families) {
      if (row.class_name == name)
        return row.family;
    }
  }
  in.refuse("architectures", accepted);
  return {};
}

namespace {

/// What some families always have, and GLM's files tell.
void read_variant(config_reader& in, model_config& config) {
  const auto is = [&](architecture family) { return config.family == family; };
  config.attention_bias = is(architecture::qwen2) || is(architecture::mimo);
  config.qk_norm = is(architecture::qwen3) || is(architecture::qwen3_moe);
  if (is(architecture::glm4_moe)) {
    config.attention_bias = in.flag("attention_bias");
    config.qk_norm = in.flag("use_qk_norm");
  }
}

void read_shape(config_reader& in, model_config& config) {
  config.hidden = in.count("hidden_size", hidden_max);
  config.layers = in.count("num_hidden_layers", layers_max);
  config.heads = in.count("num_attention_heads", heads_max);
  // Only Llama's files were ever written without it, and then meant plain multi-head attention.
  config.kv_heads = config.family == architecture::llama
                      ? in.count_or("num_key_value_heads", config.heads, 1, heads_max)
                      : in.count("num_key_value_heads", heads_max);
  config.intermediate = in.count("intermediate_size", intermediate_max);
  config.vocabulary = in.count("vocab_size", vocabulary_max);
  config.max_positions = in.count("max_position_embeddings", positions_max);
  config.rms_eps = static_cast<float>(in.real("rms_norm_eps", 1e-30, 0.1));
  if (config.family == architecture::deepseek_v3)
    return read_latent(in, config);
  if (config.heads % config.kv_heads != 0)
    in.refuse("num_key_value_heads",
              "it must divide num_attention_heads = " + std::to_string(config.heads));
  if (in.has("head_dim")) {
    config.head_dim = in.count("head_dim", head_dim_max);
    if (config.head_dim % 16 != 0)
      in.refuse("head_dim", "accepted: a multiple of 16 up to 256");
    return;
  }
  config.head_dim = config.hidden / config.heads;
  if (config.hidden % config.heads != 0 || config.head_dim % 16 != 0 || config.head_dim == 0
      || config.head_dim > head_dim_max)
    in.refuse("head_dim", "hidden_size / num_attention_heads = " + std::to_string(config.hidden)
                            + " / " + std::to_string(config.heads)
                            + " must be a multiple of 16 up to 256");
}

// -- rotary frequencies -------------------------------------------------------

constexpr std::string_view rope_types(bool yarn) noexcept {
  return yarn ? "default, linear, llama3, yarn" : "default, linear, llama3";
}

void refuse_unknown_rope_keys(config_reader& rope, const nlohmann::json& object, bool yarn) {
  constexpr std::array<std::string_view, 8> known{"rope_type",
                                                  "type",
                                                  "rope_theta",
                                                  "factor",
                                                  "low_freq_factor",
                                                  "high_freq_factor",
                                                  "partial_rotary_factor",
                                                  "original_max_position_embeddings"};
  constexpr std::array<std::string_view, 4> of_yarn{"beta_fast", "beta_slow", "mscale",
                                                    "mscale_all_dim"};
  const auto among = [](const auto& list, std::string_view key) {
    return std::find(list.begin(), list.end(), key) != list.end();
  };
  for (const auto& [key, value] : object.items()) {
    if (!among(known, key) && !(yarn && among(of_yarn, key)) && !value.is_null())
      rope.refuse(printable(key, 40), "this key is not supported; accepted rope types: "
                                        + std::string(rope_types(yarn)));
  }
}

void read_scaling(config_reader& rope, config_reader& in, model_config& config) {
  auto& out = config.rope;
  const bool yarn = config.family == architecture::deepseek_v3;
  using kernels::rope_scaling;
  if (rope.has("rope_type") && rope.has("type") && *rope.find("rope_type") != *rope.find("type"))
    rope.refuse("type", "it contradicts rope_type");
  const std::string key = rope.has("rope_type") ? "rope_type" : "type";
  const std::string type = rope.text_or(key, "default");
  if (type == "default") {
    out.scaling = rope_scaling::none;
  } else if (type == "linear") {
    out.scaling = rope_scaling::linear;
    out.factor = rope.real("factor", 1.0, 1e6);
  } else if (type == "llama3") {
    out.scaling = rope_scaling::llama3;
    out.factor = rope.real("factor", 1.0, 1e6);
    out.low_freq_factor = rope.real("low_freq_factor", 1e-6, 1e6);
    out.high_freq_factor = rope.real("high_freq_factor", 1e-6, 1e6);
    // transformers 4.5x also wrote it at the top level.
    auto& holder = rope.has("original_max_position_embeddings") ? rope : in;
    out.original_max_position =
      static_cast<double>(holder.count("original_max_position_embeddings", positions_max));
    if (out.low_freq_factor >= out.high_freq_factor)
      rope.refuse("low_freq_factor", "it must be less than high_freq_factor");
  } else if (type == "yarn" && yarn) {
    read_yarn(rope, config);
  } else {
    rope.refuse(key, "accepted: " + std::string(rope_types(yarn)));
  }
}

/// GLM rotates the first dimensions of a head only; every other family all of them.
void read_partial_rotation(config_reader& rope, config_reader& in, model_config& config) {
  constexpr std::string_view key = "partial_rotary_factor";
  if (config.family == architecture::glm4_moe) {
    auto& holder = rope.has(key) ? rope : in;
    const double factor = holder.real(key, 0.0, 1.0);
    // The least bit more, so that a factor like 1/3 gives back the whole number that it came from.
    config.rope.head_dim =
      static_cast<std::size_t>(static_cast<double>(config.head_dim) * factor + 1e-9);
    if (config.rope.head_dim == 0 || config.rope.head_dim % 16 != 0)
      holder.refuse(key, "accepted: a share of head_dim = " + std::to_string(config.head_dim)
                           + " that is a multiple of 16");
    return;
  }
  for (auto* holder : {&rope, &in}) {
    if (holder->has(key) && holder->real(key, 0.0, 1.0) != 1.0)
      holder->refuse(key, "accepted: 1, every dimension of a head is rotated");
  }
}

void read_rope(config_reader& in, model_config& config) {
  auto& out = config.rope;
  out.head_dim = config.latent.rank != 0 ? config.latent.rope : config.head_dim;
  static const nlohmann::json nothing = nlohmann::json::object();
  const nlohmann::json* object = &nothing;
  std::string name = "rope_scaling";
  for (const std::string key : {"rope_scaling", "rope_parameters"}) {
    if (!in.has(key))
      continue;
    if (!in.find(key)->is_object())
      return in.refuse(key, "accepted: null or an object");
    if (object != &nothing && *object != *in.find(key))
      return in.refuse(key, "it contradicts rope_scaling; keep one of the two");
    object = in.find(key);
    name = key;
  }
  config_reader rope(*object, in.where() + ": " + name);
  refuse_unknown_rope_keys(rope, *object, config.family == architecture::deepseek_v3);
  const bool nested = rope.has("rope_theta");
  if (nested && in.has("rope_theta") && *rope.find("rope_theta") != *in.find("rope_theta"))
    rope.refuse("rope_theta", "it contradicts the rope_theta outside");
  out.theta = (nested ? rope : in).real("rope_theta", 1.0, 1e12);
  read_partial_rotation(rope, in, config);
  read_scaling(rope, in, config);
  if (!rope.ok())
    in.refuse_as(rope.failure());
}

// -- what the engine does not compute ----------------------------------------

void refuse_sliding_window(config_reader& in, const model_config& config) {
  bool used = in.flag_or("use_sliding_window", false);
  const bool layered = in.has("layer_types");
  if (layered) {
    const auto& types = *in.find("layer_types");
    if (!types.is_array())
      return in.refuse("layer_types", "accepted: an array of \"full_attention\"");
    for (const auto& type : types) {
      if (type == "sliding_attention")
        used = true;
      else if (type != "full_attention")
        return in.refuse("layer_types", "accepted: an array of \"full_attention\"");
    }
  }
  if (!used || !in.has("sliding_window"))
    return;
  const auto window = in.count_or("sliding_window", 0, 1, std::numeric_limits<std::int64_t>::max());
  if (window < config.max_positions)
    in.refuse("sliding_window", "sliding windows below max_position_embeddings = "
                                  + std::to_string(config.max_positions)
                                  + " are not supported; set use_sliding_window false");
}

void refuse_unsupported(config_reader& in, const model_config& config) {
  if (in.text_or("hidden_act", "silu") != "silu")
    in.refuse("hidden_act", "accepted: \"silu\"");
  if (in.flag_or("mlp_bias", false))
    in.refuse("mlp_bias", "accepted: false");
  if (in.flag_or("attention_bias", config.attention_bias) != config.attention_bias)
    in.refuse("attention_bias",
              config.attention_bias
                ? "this architecture has biases on q, k and v; accepted: true or absent"
                : "accepted: false; a bias on the attention output is not supported");
  const bool fp8 = config.family == architecture::deepseek_v3 && has_fp8_blocks(in);
  for (const auto* key : {"quantization_config", "compression_config"}) {
    if (in.has(key) && !fp8)
      in.refuse(key, "quantised checkpoints are not supported; give a bf16, f16 or f32 one");
  }
  refuse_sliding_window(in, config);
}

// -- end-of-sequence ids ------------------------------------------------------

void read_eos(config_reader& in, model_config& config) {
  if (!in.has("eos_token_id"))
    return;
  const auto& value = *in.find("eos_token_id");
  const auto ids = value.is_array() ? value : nlohmann::json::array({value});
  for (const auto& id : ids) {
    if (!id.is_number_integer() || id < 0 || id >= config.vocabulary)
      return in.refuse("eos_token_id", "accepted: an id, or a list of ids, from 0 to "
                                         + std::to_string(config.vocabulary - 1));
    config.eos_token_ids.push_back(id.get<token_id>());
  }
  auto& all = config.eos_token_ids;
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
}

std::string read_dtype(config_reader& in) {
  std::string name = in.text_or(in.has("dtype") ? "dtype" : "torch_dtype", "");
  if (name.starts_with("torch."))
    name.erase(0, 6);
  return printable(name, 32);
}

} // namespace

result<nlohmann::json> read_config_json(const std::filesystem::path& directory) {
  return read_json_object(directory / "config.json", config_bytes_max, errc::bad_config);
}

std::string_view to_string(architecture family) noexcept {
  return row_of(family).name;
}

std::string_view class_name(architecture family) noexcept {
  return row_of(family).class_name;
}

model_config read_config(config_reader& in, architecture family) {
  model_config config;
  config.family = family;
  read_variant(in, config);
  read_shape(in, config);
  read_experts(in, config);
  read_rope(in, config);
  config.tie_embeddings = in.flag_or("tie_word_embeddings", false);
  config.dtype = read_dtype(in);
  if (config.family == architecture::mimo || config.family == architecture::glm4_moe
      || config.family == architecture::deepseek_v3)
    config.mtp_layers = in.count_or("num_nextn_predict_layers", 0, 0, mtp_layers_max);
  refuse_unsupported(in, config);
  read_eos(in, config);
  return config;
}

result<model_config> load_config(const std::filesystem::path& directory) {
  const auto file = directory / "config.json";
  const auto json = read_config_json(directory);
  if (!json)
    return fail(json);
  config_reader in(*json, file.string());
  auto config = read_config(in, read_family(in));
  if (!in.ok())
    return tl::unexpected(in.failure());

  const auto generation = directory / "generation_config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(generation, ignored))
    return config;
  const auto more = read_json_object(generation, config_bytes_max, errc::bad_config);
  if (!more)
    return fail(more);
  config_reader also(*more, generation.string());
  read_eos(also, config);
  if (!also.ok())
    return tl::unexpected(also.failure());
  return config;
}

std::string to_config_json(const model_config& config) {
  nlohmann::ordered_json out;
  out["architectures"] = nlohmann::ordered_json::array({class_name(config.family)});
  out["model_type"] = to_string(config.family);
  out["hidden_size"] = config.hidden;
  out["intermediate_size"] = config.intermediate;
  out["num_hidden_layers"] = config.layers;
  out["num_attention_heads"] = config.heads;
  out["num_key_value_heads"] = config.kv_heads;
  out["head_dim"] = config.head_dim;
  out["hidden_act"] = "silu";
  out["rms_norm_eps"] = static_cast<double>(config.rms_eps);
  out["rope_theta"] = config.rope.theta;
  out["rope_scaling"] = nullptr;
  if (config.rope.scaling == kernels::rope_scaling::linear)
    out["rope_scaling"] = {{"rope_type", "linear"}, {"factor", config.rope.factor}};
  if (config.rope.scaling == kernels::rope_scaling::llama3)
    out["rope_scaling"] = {{"rope_type", "llama3"},
                           {"factor", config.rope.factor},
                           {"low_freq_factor", config.rope.low_freq_factor},
                           {"high_freq_factor", config.rope.high_freq_factor},
                           {"original_max_position_embeddings",
                            static_cast<std::size_t>(config.rope.original_max_position)}};
  out["attention_bias"] = config.attention_bias;
  out["tie_word_embeddings"] = config.tie_embeddings;
  out["vocab_size"] = config.vocabulary;
  out["max_position_embeddings"] = config.max_positions;
  out["eos_token_id"] = config.eos_token_ids;
  out["torch_dtype"] = config.dtype;
  if (config.mtp_layers != 0)
    out["num_nextn_predict_layers"] = config.mtp_layers;
  if (config.family == architecture::glm4_moe) {
    out["use_qk_norm"] = config.qk_norm;
    out["partial_rotary_factor"] =
      static_cast<double>(config.rope.head_dim) / static_cast<double>(config.head_dim);
  }
  write_latent(config, out);
  write_experts(config, out);
  return out.dump(2) + "\n";
}

} // namespace rollcast
