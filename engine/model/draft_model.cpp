#include "engine/model/draft_model.hpp"

#include "engine/model/checkpoint.hpp"
#include "engine/model/config_parts.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace rollcast {

namespace {

using std::to_string;

constexpr std::size_t eagle3_states = 3;

/// What every way to load a drafter starts from.
struct draft_files {
  std::filesystem::path directory;
  nlohmann::json json; ///< Of config.json.
  checkpoint tensors;

  std::string where() const { return (directory / "config.json").string(); }
};

tl::unexpected<error> refused(const draft_files& files, const std::string& why) {
  return fail(errc::bad_config, files.where() + ": " + why);
}

/// The class that config.json names; empty if it names none, or several.
std::string class_of(const nlohmann::json& json) {
  const auto at = json.find("architectures");
  if (at == json.end() || !at->is_array() || at->size() != 1 || !at->front().is_string())
    return {};
  return at->front().get<std::string>();
}

/// Reads the layer's shape as that of a model of one layer. Whether there are biases the tensors
/// say: files that leave the key out, or copy it from the target, mean no other thing.
result<model_config> read_shape_of(draft_files& files, architecture family) {
  if (family != architecture::glm4_moe) // whose files always tell
    files.json.erase("attention_bias");
  config_reader in(files.json, files.where());
  auto config = read_config(in, family);
  if (!in.ok())
    return tl::unexpected(in.failure());
  config.tie_embeddings = false;
  return config;
}

/// Takes biases and norms of q and k where the layer has them.
void find_variant(const checkpoint& tensors, model_config& config) {
  const std::string attention = config.draft.layer_prefix + "self_attn.";
  config.attention_bias = tensors.contains(attention + "q_proj.bias");
  config.qk_norm = tensors.contains(attention + "q_norm.weight");
}

result<void> check_vocabulary(const draft_files& files, std::size_t vocabulary,
                              const model_config& target) {
  if (vocabulary != target.vocabulary)
    return refused(files, "vocab_size is " + to_string(vocabulary) + ", the target's is "
                            + to_string(target.vocabulary) + ": give a draft of this model");
  return {};
}

/// Refuses EAGLE-1 and EAGLE-2 heads by name, whatever kind is asked for. Those as published call
/// themselves a model of the target's class, and are told by a layer under no `model.`.
result<void> check_no_old_eagle(const draft_files& files) {
  const std::string name = class_of(files.json);
  if (name == eagle3_class_name) // its layer may have that name too: `check_fuse` tells them apart
    return {};
  const bool named =
    name.ends_with("Eagle") || (name.starts_with("Eagle") && !name.starts_with("Eagle3"));
  if (!named && !files.tensors.contains("layers.0.self_attn.q_proj.weight"))
    return {};
  return refused(files, "this is an EAGLE-1 or EAGLE-2 head ("
                          + (name.empty() ? "of no class" : name)
                          + "), which is not supported: give an EAGLE-3 head ("
                          + std::string(eagle3_class_name) + ")");
}

// -- EAGLE-3 ------------------------------------------------------------------

result<void> check_eagle3_class(const draft_files& files) {
  const std::string name = class_of(files.json);
  if (name == eagle3_class_name)
    return {};
  return refused(files, "architectures is " + (name.empty() ? "missing" : name)
                          + ": not an EAGLE-3 "
                            "head ("
                          + std::string(eagle3_class_name)
                          + "), but --speculate eagle3 needs one in --draft-model");
}

/// Layers whose outputs an EAGLE-3 head fuses. Without a list they are those before the published
/// ones' inputs: 2, the middle and the third from the end.
result<std::vector<std::uint32_t>> read_target_layers(const draft_files& files,
                                                      const model_config& target) {
  const auto eagle = files.json.find("eagle_config");
  const std::string key = "eagle_aux_hidden_state_layer_ids";
  if (eagle == files.json.end() || !eagle->is_object() || !eagle->contains(key)) {
    if (target.layers < 6)
      return refused(files, "eagle_config." + key + " is missing, and a target of "
                              + to_string(target.layers) + " layers has no usual ones: list three");
    const auto n = static_cast<std::uint32_t>(target.layers);
    return std::vector<std::uint32_t>{1, n / 2 - 1, n - 4};
  }
  std::vector<std::uint32_t> out;
  const auto& list = eagle->at(key);
  for (const auto& id : list.is_array() ? list : nlohmann::json::array()) {
    const bool there = id.is_number_integer() && id >= 0 && id < target.layers;
    out.push_back(there ? id.get<std::uint32_t>() : UINT32_MAX);
  }
  if (out.size() != eagle3_states || std::count(out.begin(), out.end(), UINT32_MAX) != 0)
    return refused(files, "eagle_config." + key + " is " + list.dump().substr(0, 60)
                            + ": three layers from 0 to " + to_string(target.layers - 1)
                            + " are needed");
  return out;
}

/// The prefixes of this file's names: before the layer's, and before those around it.
void find_prefixes(const checkpoint& tensors, draft_config& draft) {
  draft.outer_prefix = tensors.contains("model.fc.weight") ? "model." : "";
  draft.layer_prefix = draft.outer_prefix + "midlayer."; // what is missing is named by the loader
  for (const char* layer : {"midlayer.", "layers.0.", "model.midlayer.", "model.layers.0."})
    if (tensors.contains(std::string(layer) + "hidden_norm.weight"))
      draft.layer_prefix = layer;
}

/// An EAGLE-2 head that calls itself one of EAGLE-3 is told by its `fc`.
result<void> check_fuse(const draft_files& files, const model_config& config) {
  const std::string name = config.draft.outer_prefix + "fc.weight";
  if (!files.tensors.contains(name))
    return {};
  const auto fc = files.tensors.tensor(name);
  if (!fc)
    return fail(fc);
  if (fc->shape == std::vector{config.hidden, 2 * config.hidden})
    return fail(errc::bad_checkpoint, files.tensors.origin(name) + ": tensor " + name + " is ["
                                        + to_string(config.hidden) + ", "
                                        + to_string(2 * config.hidden)
                                        + "], as in EAGLE-1 and EAGLE-2, which are not supported: "
                                          "give an EAGLE-3 head");
  return {};
}

result<model_config> read_eagle3(draft_files& files, const model_config& target) {
  if (auto named = check_eagle3_class(files); !named)
    return fail(named);
  // Llama's own default, which the published Llama-3.1 head relies on.
  if (!files.json.contains("rope_theta") && !files.json.contains("rope_parameters"))
    files.json["rope_theta"] = 10000.0;
  auto config = read_shape_of(files, architecture::llama);
  if (!config)
    return config;
  if (config->layers != 1)
    return refused(files,
                   "num_hidden_layers is " + to_string(config->layers) + ": an EAGLE-3 head has 1");
  if (auto ok = check_vocabulary(files, config->vocabulary, target); !ok)
    return fail(ok);
  auto layers = read_target_layers(files, target);
  if (!layers)
    return fail(layers);
  auto& draft = config->draft;
  draft.kind = draft_kind::eagle3;
  draft.target_layers = std::move(*layers);
  draft.state_width = eagle3_states * target.hidden;
  draft.target_vocabulary = target.vocabulary;
  find_prefixes(files.tensors, draft);
  if (auto ok = check_fuse(files, *config); !ok)
    return fail(ok);
  config_reader in(files.json, files.where());
  config->vocabulary = in.count_or("draft_vocab_size", target.vocabulary, 1, target.vocabulary);
  if (!in.ok())
    return tl::unexpected(in.failure());
  draft.own_embedding = files.tensors.contains(draft.outer_prefix + "embed_tokens.weight");
  draft.own_head =
    config->vocabulary != target.vocabulary || files.tensors.contains("lm_head.weight");
  if (config->hidden != target.hidden && !(draft.own_embedding && draft.own_head))
    return refused(files, "hidden_size is " + to_string(config->hidden) + ", the target's is "
                            + to_string(target.hidden)
                            + ", whose embedding or head this draft would take: give one that has "
                              "both of its own, or a draft of this model");
  find_variant(files.tensors, *config);
  return config;
}

/// `d2t` holds differences: draft id i stands for i + d2t[i]. `t2d` marks what it reaches.
result<std::vector<token_id>> read_target_ids(const draft_files& files,
                                              const model_config& config) {
  const auto& tensors = files.tensors;
  const std::size_t whole = config.draft.target_vocabulary;
  if (!tensors.contains("d2t") && config.vocabulary == whole)
    return std::vector<token_id>{};
  const auto bytes = tensors.list("d2t", "I64");
  if (!bytes)
    return fail(bytes);
  const auto bad = [&](const std::string& what) {
    return fail(errc::bad_checkpoint, tensors.origin("d2t") + ": " + what);
  };
  if (bytes->size() != config.vocabulary * sizeof(std::int64_t))
    return bad("tensor d2t has " + to_string(bytes->size() / sizeof(std::int64_t))
               + " entries, draft_vocab_size is " + to_string(config.vocabulary));
  std::vector<token_id> out;
  std::vector<bool> reached(whole, false);
  for (std::size_t i = 0; i < config.vocabulary; ++i) {
    std::int64_t difference = 0;
    std::memcpy(&difference, bytes->data() + i * sizeof difference, sizeof difference);
    const bool near = difference >= -static_cast<std::int64_t>(i)
                      && difference < static_cast<std::int64_t>(whole - i);
    if (!near || reached[i + static_cast<std::size_t>(difference)])
      return bad("tensor d2t[" + to_string(i) + "] = " + to_string(difference) + ": token "
                 + to_string(i) + " and it must add up to one of the target's " + to_string(whole)
                 + " tokens, each once");
    reached[i + static_cast<std::size_t>(difference)] = true;
    out.push_back(static_cast<token_id>(static_cast<std::int64_t>(i) + difference));
  }
  if (!tensors.contains("t2d"))
    return out;
  const auto marks = tensors.list("t2d", "BOOL");
  if (!marks)
    return fail(marks);
  if (marks->size() != whole)
    return bad("tensor t2d has " + to_string(marks->size()) + " entries, the target's vocabulary "
               + to_string(whole));
  for (std::size_t id = 0; id < whole; ++id)
    if (((*marks)[id] != std::byte{0}) != reached[id])
      return bad("t2d[" + to_string(id) + "] contradicts d2t: the file is damaged");
  return out;
}

// -- MTP ----------------------------------------------------------------------

result<model_config> read_mtp(draft_files& files, const model_config& target) {
  config_reader in(files.json, files.where());
  const auto family = read_family(in);
  const std::string name = class_of(files.json);
  if (name == eagle3_class_name)
    return refused(files, "this is an EAGLE-3 head: give --speculate eagle3 with it");
  if (!in.ok())
    return tl::unexpected(in.failure());
  auto config = read_shape_of(files, family);
  if (!config)
    return config;
  const bool mimo = family == architecture::mimo;
  auto& draft = config->draft;
  draft.layer_prefix =
    mimo ? "model.mtp_layers.0." : "model.layers." + to_string(config->layers) + ".";
  if (config->mtp_layers == 0 || tensor_subset(files.tensors, draft.layer_prefix).names().empty())
    return refused(
      files,
      name + " with num_nextn_predict_layers = " + to_string(config->mtp_layers) + " and "
        + (config->mtp_layers == 0 ? "so no MTP layer" : "no tensor " + draft.layer_prefix + "*")
        + ": --speculate mtp needs a model that has one, or a directory with "
          "one in --draft-model");
  if (auto ok = check_vocabulary(files, config->vocabulary, target); !ok)
    return fail(ok);
  if (config->hidden != target.hidden)
    return refused(files, "hidden_size is " + to_string(config->hidden) + ", the target's is "
                            + to_string(target.hidden) + ": give a draft of this model");
  draft.kind = draft_kind::mtp;
  draft.mimo = mimo;
  draft.state_width = target.hidden;
  draft.target_vocabulary = target.vocabulary;
  config->layers = 1;
  config->experts.dense_layers.clear();
  find_variant(files.tensors, *config);
  return config;
}

} // namespace

result<bool> is_eagle3(const std::filesystem::path& directory) {
  const auto json = read_config_json(directory);
  if (!json)
    return fail(json);
  return class_of(*json) == eagle3_class_name;
}

result<draft_model> load_draft(const std::filesystem::path& directory, draft_kind kind,
                               const model_config& target, kernels::arithmetic how,
                               const load_options& options) {
  auto json = read_config_json(directory);
  if (!json)
    return fail(json);
  auto tensors = checkpoint::open(directory);
  if (!tensors)
    return fail(tensors);
  draft_files files{directory, std::move(*json), std::move(*tensors)};
  if (auto ok = check_no_old_eagle(files); !ok)
    return fail(ok);
  const bool eagle = kind == draft_kind::eagle3;
  const auto config = eagle ? read_eagle3(files, target) : read_mtp(files, target);
  if (!config)
    return fail(config);
  draft_model out;
  if (eagle) {
    auto ids = read_target_ids(files, *config);
    if (!ids)
      return fail(ids);
    out.target_ids = std::move(*ids);
  }
  // Beside an MTP layer there may be a whole model; an EAGLE-3 head is alone in its files.
  const tensor_subset source(files.tensors, eagle ? "" : config->draft.layer_prefix);
  auto weights = model_weights::load(*config, source, how, options);
  if (!weights)
    return fail(weights);
  out.weights = std::move(*weights);
  return out;
}

} // namespace rollcast
