#include "engine/model/shapes.hpp"

#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_plan.hpp"

#include <array>
#include <string>

namespace rollcast {

namespace {

constexpr std::array shapes{
  model_shape{"qwen3-0.6b", "Qwen/Qwen3-0.6B"},
  model_shape{"qwen3-4b", "Qwen/Qwen3-4B"},
  model_shape{"qwen3-8b", "Qwen/Qwen3-8B"},
  model_shape{"llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"},
};

/// What all dense Qwen3 models share.
model_config qwen3(std::size_t layers, std::size_t hidden, std::size_t heads,
                   std::size_t intermediate, bool tied) {
  model_config c;
  c.family = architecture::qwen3;
  c.hidden = hidden;
  c.layers = layers;
  c.heads = heads;
  c.kv_heads = 8;
  c.head_dim = 128;
  c.intermediate = intermediate;
  c.vocabulary = 151'936;
  c.rms_eps = 1e-6f;
  c.rope.head_dim = c.head_dim;
  c.rope.theta = 1e6;
  c.max_positions = 40'960;
  c.tie_embeddings = tied;
  c.qk_norm = true;
  c.eos_token_ids = {151'643, 151'645};
  return c;
}

model_config llama31_8b() {
  model_config c;
  c.family = architecture::llama;
  c.hidden = 4096;
  c.layers = 32;
  c.heads = 32;
  c.kv_heads = 8;
  c.head_dim = 128;
  c.intermediate = 14'336;
  c.vocabulary = 128'256;
  c.rms_eps = 1e-5f;
  c.rope.head_dim = c.head_dim;
  c.rope.theta = 5e5;
  c.rope.scaling = kernels::rope_scaling::llama3;
  c.rope.factor = 8;
  c.max_positions = 131'072;
  c.eos_token_ids = {128'001, 128'008, 128'009};
  return c;
}

model_config config_of(std::string_view name) {
  if (name == "qwen3-0.6b")
    return qwen3(28, 1024, 16, 3072, true);
  if (name == "qwen3-4b")
    return qwen3(36, 2560, 32, 9728, true);
  if (name == "qwen3-8b")
    return qwen3(36, 4096, 32, 12'288, false);
  return llama31_8b();
}

} // namespace

std::span<const model_shape> model_shapes() noexcept {
  return shapes;
}

result<model_config> find_shape(std::string_view name) {
  std::string known;
  for (const auto& shape : shapes) {
    if (shape.name == name)
      return config_of(name);
    known += (known.empty() ? "" : ", ") + std::string{shape.name};
  }
  return fail(errc::bad_config, "unknown shape '" + std::string{name} + "': there are " + known);
}

std::uint64_t checkpoint_bytes(const model_config& config, kernels::dtype type) {
  std::uint64_t bytes = 0;
  for (const auto& tensor : plan_tensors(config))
    bytes += bytes_of(tensor_info{tensor.name, type, tensor.shape, {}});
  return bytes;
}

} // namespace rollcast
