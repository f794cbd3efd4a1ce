#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "kernels/rope.hpp"
#include "kernels/route.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast {

/// Model families, by the class name in config.json's `architectures`.
enum class architecture : std::uint8_t {
  qwen3,     ///< `Qwen3ForCausalLM`: RMSNorm of every q and k head, no biases.
  qwen2,     ///< `Qwen2ForCausalLM` (Qwen 2 and 2.5): biases on q, k and v.
  llama,     ///< `LlamaForCausalLM` (Llama 3.x): no biases, may scale its rotary frequencies.
  mimo,      ///< `MiMoForCausalLM` (MiMo-7B): Qwen2's layers and MTP layers beside them.
  qwen3_moe, ///< `Qwen3MoeForCausalLM`: Qwen3's attention, experts chosen by a softmax.
  glm4_moe,  ///< `Glm4MoeForCausalLM` (GLM-4.5, 4.6): partial rotation, experts beside shared ones.
  /// `DeepseekV3ForCausalLM` (DeepSeek-V3 and R1, Moonlight, Kimi-K2): attention over a latent.
  deepseek_v3,
};

/// Returns the `model_type` of config.json: "qwen3", "qwen2", "llama", "mimo", "qwen3_moe",
/// "glm4_moe" or "deepseek_v3".
std::string_view to_string(architecture family) noexcept;

/// Returns the name in config.json's `architectures`, for instance "Qwen3ForCausalLM".
std::string_view class_name(architecture family) noexcept;

/// The experts of a model's sparse layers, and how a token finds its own.
struct expert_config {
  std::size_t count = 0;        ///< Experts of each sparse layer; 0 in a dense model.
  std::size_t per_token = 0;    ///< Of them, chosen for a token.
  std::size_t intermediate = 0; ///< Width of an expert.
  std::size_t shared = 0;       ///< Experts that every token has beside; one FFN of their width.
  kernels::router_score score = kernels::router_score::softmax;
  bool choice_bias = false;    ///< A correction is added to the scores for the choice alone.
  std::size_t groups = 1;      ///< Experts lie in so many groups,
  std::size_t groups_kept = 1; ///< of which a token keeps the best.
  float scaling = 1.0f;        ///< Of the chosen experts' weights.
  bool normalise = false;      ///< A token's weights are divided by their sum.
  std::vector<std::size_t> dense_layers; ///< Layers with one FFN and no experts, ascending.
};

/// The heads of attention over a latent (MLA), where keys and values of all heads are linear maps
/// of one small vector a token, and that vector is what the cache holds.
struct latent_config {
  std::size_t rank = 0;   ///< Width of the latent; 0 without. A multiple of 32, at most 512.
  std::size_t q_rank = 0; ///< Width of the queries' own latent; 0: they come from the hidden state.
  std::size_t nope = 0;   ///< Dimensions of a query head that are not rotated.
  std::size_t rope = 0;   ///< Dimensions that are, after them; one key of them for all heads.
  std::size_t value = 0;  ///< Width of a value head; a multiple of 32.
  float norm_eps = 1e-6f; ///< Of the norms of both latents, whatever `rms_eps` is.
  double mscale = 0.0;    ///< As yarn's parameters say, or 0.
  double mscale_all = 0.0;
};

enum class draft_kind : std::uint8_t {
  none,   ///< A model that is rolled out.
  eagle3, ///< An EAGLE-3 head: fuses what three layers of the target leave.
  mtp,    ///< A multi-token-prediction layer: takes the target's last hidden state.
};

/// The name in config.json's `architectures` of an EAGLE-3 head.
inline constexpr std::string_view eagle3_class_name = "LlamaForCausalLMEagle3";

/// What makes a model of one layer the drafter of another one, its target. Each of its rows takes
/// in a token and a state: the target's of the position before that token, or its own.
struct draft_config {
  draft_kind kind = draft_kind::none;
  std::string layer_prefix; ///< Of the layer's tensors: "midlayer.", "model.mtp_layers.0."
  std::string outer_prefix; ///< Of those around it, EAGLE-3: "" or "model."
  std::vector<std::uint32_t> target_layers; ///< EAGLE-3: the three whose outputs it fuses.
  std::size_t state_width = 0;              ///< Of what the target hands over for a row.
  std::size_t target_vocabulary = 0;        ///< Rows of the embedding.
  bool own_embedding = false;               ///< Else the target's.
  bool own_head = false;                    ///< Else the target's.
  bool mimo = false; ///< MTP in MiMo's names: state before token, token 0 without an embedding.
};

/// The shape of a model: everything that the engine must know besides the weights. What
/// `load_config` returns has passed every check that this header lists.
struct model_config {
  architecture family = architecture::qwen3;
  std::size_t hidden = 0;   ///< Width of the residual stream.
  std::size_t layers = 0;   ///< Base layers; MTP layers not counted.
  std::size_t heads = 0;    ///< Query heads; a multiple of `kv_heads`.
  std::size_t kv_heads = 0; ///< Key and value heads in the cache; 1 with a latent.
  /// A multiple of 16, at most 256; need not be hidden / heads. With a latent, the width of what
  /// the cache holds: latent.rank + latent.rope.
  std::size_t head_dim = 0;
  std::size_t intermediate = 0; ///< Width of the gated FFN of dense layers.
  std::size_t vocabulary = 0;   ///< Rows of the embedding.
  float rms_eps = 1e-6f;
  kernels::rope_params rope;     ///< Its `head_dim`: how many dimensions of a head are rotated.
  std::size_t max_positions = 0; ///< Prompt and response together.
  bool tie_embeddings = false;   ///< The head is the embedding.
  bool attention_bias = false;   ///< q, k and v have biases; o never has.
  bool qk_norm = false;          ///< Every q and k head is normalised before its rotation.
  std::vector<token_id> eos_token_ids; ///< Ascending, without repeats; may be empty.
  std::string dtype;                   ///< As the file says ("bfloat16"); may be empty.
  /// Layers under `model.mtp_layers` (MiMo), or behind the last one (GLM).
  std::size_t mtp_layers = 0;
  expert_config experts;
  latent_config latent;
  draft_config draft; ///< `layers` is then 1, `vocabulary` what the head can say.

  /// Columns of what the first projection of attention takes in.
  std::size_t attention_input() const noexcept;
  /// Columns of the first projection of attention, the fused q, k and v.
  std::size_t qkv_width() const noexcept;
  /// Columns of what attention hands to its output projection.
  std::size_t attended_width() const noexcept;
  /// Factor of the attention scores.
  float attention_scale() const noexcept;
  /// True if the layer has experts in place of one FFN.
  bool is_sparse(std::size_t layer) const noexcept;
};

/// Reads `config.json`, and `generation_config.json` for more end-of-sequence ids where there is
/// one. Accepts the spellings of transformers 4 and 5: `rope_theta`, `rope_scaling` and
/// `torch_dtype`, or `rope_parameters` and `dtype`.
///
/// @returns `io_failed` if config.json cannot be read, else `bad_config` with one line that names
///          file, key, value and what is accepted: a missing key, a wrong type, a number that is
///          not finite or not in range, heads that do not divide, a head_dim that is not a multiple
///          of 16, more chosen experts than there are, and whatever the engine does not compute
///          (other architectures, rope types other than default, linear, llama3 and
///          DeepSeek's yarn, partial rotation but of GLM, sliding windows below the context,
///          activations other than silu, biases elsewhere, quantised checkpoints but DeepSeek's FP8
///          blocks).
result<model_config> load_config(const std::filesystem::path& directory);

/// Returns the text of a config.json that `load_config` reads back as `config`.
std::string to_config_json(const model_config& config);

} // namespace rollcast
