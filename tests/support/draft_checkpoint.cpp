#include "tests/support/draft_checkpoint.hpp"

#include "engine/base/check.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/prng.hpp"

#include <cmath>
#include <cstring>
#include <fstream>
#include <span>

namespace rollcast::test {
namespace {

/// Half precision by truncation: tests need any halves, not the nearest.
std::uint16_t to_f16(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  const auto exponent = static_cast<std::int32_t>((bits >> 23) & 0xffu) - 127 + 15;
  const auto sign = (bits >> 16) & 0x8000u;
  if (exponent <= 0)
    return static_cast<std::uint16_t>(sign);
  return static_cast<std::uint16_t>(sign | (static_cast<std::uint32_t>(exponent) << 10)
                                    | ((bits >> 13) & 0x3ffu));
}

/// What every drafter's config.json says of its layer.
nlohmann::ordered_json config_of(const model_config& target, std::size_t positions) {
  nlohmann::ordered_json out;
  out["hidden_size"] = target.hidden;
  out["intermediate_size"] = 72;
  out["num_attention_heads"] = 4;
  out["num_key_value_heads"] = 2;
  out["head_dim"] = 32;
  out["hidden_act"] = "silu";
  out["rms_norm_eps"] = 1e-5;
  out["rope_theta"] = 10000.0;
  out["vocab_size"] = target.vocabulary;
  out["max_position_embeddings"] = positions;
  out["tie_word_embeddings"] = false;
  out["torch_dtype"] = "float32";
  return out;
}

void add_layer(draft_checkpoint& out, const std::string& prefix, std::size_t hidden,
               std::size_t input, std::uint64_t seed) {
  const auto add = [&](const std::string& name, std::vector<std::size_t> shape) {
    out.add_random(prefix + name + ".weight", std::move(shape), seed);
  };
  add("self_attn.q_proj", {128, input});
  add("self_attn.k_proj", {64, input});
  add("self_attn.v_proj", {64, input});
  add("self_attn.o_proj", {hidden, 128});
  add("mlp.gate_proj", {72, hidden});
  add("mlp.up_proj", {72, hidden});
  add("mlp.down_proj", {hidden, 72});
  add("input_layernorm", {hidden});
  add("post_attention_layernorm", {hidden});
}

} // namespace

void draft_checkpoint::add_random(const std::string& name, std::vector<std::size_t> shape,
                                  std::uint64_t seed, const std::string& dtype) {
  std::size_t count = 1;
  for (const auto extent : shape)
    count *= extent;
  prng random{hash_of(std::span<const char>(name), seed).low};
  const bool matrix = shape.size() == 2;
  const float deviation = matrix ? 1.0f / std::sqrt(static_cast<float>(shape[1])) : 0.1f;
  tensor made{dtype, std::move(shape), {}};
  const std::size_t size = dtype == "F16" ? 2 : 4;
  made.bytes.resize(count * size);
  for (std::size_t i = 0; i < count; ++i) {
    const float uniform = static_cast<float>(random.next() >> 40) * 0x1p-24f - 0.5f;
    const float value = (matrix ? 0.0f : 1.0f) + deviation * 3.46f * uniform;
    const auto half = to_f16(value);
    std::memcpy(&made.bytes[i * size], size == 2 ? static_cast<const void*>(&half) : &value, size);
  }
  tensors[name] = std::move(made);
}

void draft_checkpoint::rename(const std::string& from, const std::string& to) {
  std::map<std::string, tensor> renamed;
  for (auto& [name, held] : tensors)
    renamed[name.starts_with(from) ? to + name.substr(from.size()) : name] = std::move(held);
  tensors = std::move(renamed);
}

void draft_checkpoint::write(const std::filesystem::path& directory) const {
  std::filesystem::create_directories(directory);
  std::ofstream{directory / "config.json"} << config.dump(2) << "\n";
  nlohmann::ordered_json header;
  std::size_t at = 0;
  for (const auto& [name, held] : tensors) {
    header[name] = {
      {"dtype", held.dtype}, {"shape", held.shape}, {"data_offsets", {at, at + held.bytes.size()}}};
    at += held.bytes.size();
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::ofstream out{directory / "model.safetensors", std::ios::binary};
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << text;
  for (const auto& [name, held] : tensors)
    out.write(reinterpret_cast<const char*>(held.bytes.data()),
              static_cast<std::streamsize>(held.bytes.size()));
  out.close();
  ROLLCAST_CHECK(out.good());
}

draft_checkpoint random_eagle3(const model_config& target, std::uint64_t seed,
                               std::size_t positions) {
  draft_checkpoint out;
  const std::size_t said = target.vocabulary / 2;
  out.config = config_of(target, positions);
  out.config["architectures"] = {eagle3_class_name};
  out.config["num_hidden_layers"] = 1;
  out.config["draft_vocab_size"] = said;
  out.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = {0, target.layers / 2,
                                                                    target.layers - 1};
  out.add_random("fc.weight", {target.hidden, 3 * target.hidden}, seed);
  out.add_random("midlayer.hidden_norm.weight", {target.hidden}, seed);
  add_layer(out, "midlayer.", target.hidden, 2 * target.hidden, seed);
  out.add_random("norm.weight", {target.hidden}, seed);
  out.add_random("lm_head.weight", {said, target.hidden}, seed);
  draft_checkpoint::tensor d2t{"I64", {said}, {}}, t2d{"BOOL", {target.vocabulary}, {}};
  t2d.bytes.resize(target.vocabulary);
  for (std::size_t i = 0; i < said; ++i) {
    const auto difference = static_cast<std::int64_t>(i); // token 2i
    const auto* bytes = reinterpret_cast<const std::byte*>(&difference);
    d2t.bytes.insert(d2t.bytes.end(), bytes, bytes + sizeof difference);
    t2d.bytes[2 * i] = std::byte{1};
  }
  out.tensors["d2t"] = std::move(d2t);
  out.tensors["t2d"] = std::move(t2d);
  return out;
}

draft_checkpoint random_mtp(const model_config& target, std::uint64_t seed, std::size_t positions) {
  draft_checkpoint out;
  out.config = config_of(target, positions);
  out.config["architectures"] = {class_name(architecture::mimo)};
  out.config["num_hidden_layers"] = target.layers;
  out.config["num_nextn_predict_layers"] = 1;
  const std::string prefix = "model.mtp_layers.0.";
  for (const char* norm : {"token_layernorm", "hidden_layernorm", "final_layernorm"})
    out.add_random(prefix + norm + ".weight", {target.hidden}, seed);
  out.add_random(prefix + "input_proj.weight", {target.hidden, 2 * target.hidden}, seed);
  add_layer(out, prefix, target.hidden, target.hidden, seed);
  return out;
}

} // namespace rollcast::test
