#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "kernels/types.hpp"

#include <cstdint>
#include <span>
#include <string_view>

namespace rollcast {

/// A published model by the numbers of its config.json, for checkpoints of the real size that need
/// no download.
struct model_shape {
  std::string_view name;  ///< As `make-model --shape` takes it: "qwen3-8b".
  std::string_view model; ///< On the Hugging Face hub: "Qwen/Qwen3-8B".
};

/// The shapes that there are, smallest first.
std::span<const model_shape> model_shapes() noexcept;

/// The config of a shape. Fails with `bad_config` and the names that there are.
/// Source: the config.json and generation_config.json of the published checkpoints.
result<model_config> find_shape(std::string_view name);

/// Bytes of all tensors of a model in one type: what its safetensors files hold beside headers.
std::uint64_t checkpoint_bytes(const model_config& config, kernels::dtype type);

} // namespace rollcast
