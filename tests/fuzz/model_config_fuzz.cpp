// Goal: no config.json or generation_config.json crashes the reader, and what is taken has the
// shape that the engine relies on.
// Method: the input up to a zero byte is config.json, the rest generation_config.json. What is
// taken is written and read again.

#include "engine/model/config.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <cmath>

namespace rollcast::fuzz {
namespace {

void check_config(const model_config& c) {
  require(c.hidden > 0 && c.layers > 0 && c.intermediate > 0 && c.vocabulary > 0,
          "sizes are there");
  require(c.max_positions > 0, "there are positions");
  require(c.kv_heads > 0 && c.heads > 0 && c.heads % c.kv_heads == 0, "heads divide");
  require(c.head_dim > 0 && c.head_dim % 16 == 0 && (c.head_dim <= 256 || c.latent.rank != 0),
          "a head fits the kernels");
  const auto& l = c.latent;
  require(l.rank == 0 || c.head_dim == l.rank + l.rope, "a cached key is latent and rotated part");
  require(l.rank % 32 == 0 && l.rank <= kernels::latent_dim_max && l.value % 32 == 0,
          "a latent fits the kernels");
  require(std::isfinite(c.attention_scale()) && c.attention_scale() > 0, "scores have a scale");
  const auto& e = c.experts;
  require(e.count <= kernels::experts_max && e.per_token <= e.count, "chosen experts are there");
  require((e.count == 0) == (e.intermediate == 0), "an expert has a width");
  require(e.dense_layers.size() <= c.layers, "dense layers are layers");
  require(std::isfinite(c.rms_eps) && c.rms_eps > 0, "the epsilon is a positive number");
  for (const auto id : c.eos_token_ids)
    require(id >= 0 && static_cast<std::size_t>(id) < c.vocabulary,
            "an end id is in the vocabulary");
  check_line(c.dtype);
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto input = fuzz::text_of(data, size);
  const auto split = input.find('\0');
  fuzz::write_scratch("config.json", input.substr(0, split));
  const auto generation = fuzz::scratch() / "generation_config.json";
  std::error_code ignored;
  std::filesystem::remove(generation, ignored);
  if (split != std::string_view::npos)
    fuzz::write_scratch("generation_config.json", input.substr(split + 1));
  const auto config = load_config(fuzz::scratch());
  if (!config) {
    fuzz::check_refusal(config.error());
    return 0;
  }
  fuzz::check_config(*config);
  std::filesystem::remove(generation, ignored);
  const auto text = to_config_json(*config);
  fuzz::write_scratch("config.json", text);
  const auto again = load_config(fuzz::scratch());
  fuzz::require(again.has_value(), "what to_config_json writes is taken");
  fuzz::require(to_config_json(*again) == text, "a config comes back as it was written");
  return 0;
}
