#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/tensor_source.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace rollcast {

/// Checks what can be checked of a model's tensors before their bytes are here, in the words that
/// the loader uses.
///
/// @param complete  Whether they must be all of the model's, or only some that change.
/// @param origin    What to call them in an error: "update to epoch 7".
/// @returns `bad_checkpoint` with one line: missing and unknown tensors by name (up to five of
/// each,
///          and how many), a name that is there twice, a shape that is not what the config says, no
///          tensor at all. Tensors that the model does not need (`is_known_extra`) pass.
result<void> check_tensors(const model_config& config, std::span<const tensor_info> tensors,
                           bool complete, std::string_view origin);

/// The part of `check_tensors` that is about names. @param names  Each once, in any order.
result<void> check_names(const model_config& config, std::span<const planned_tensor> plan,
                         std::span<const std::string_view> names, bool complete,
                         std::string_view origin);

/// The part of `check_tensors` that is about one tensor's shape.
result<void> check_shape(const planned_tensor& planned, std::span<const std::size_t> shape,
                         std::string_view origin);

/// Refuses a value among elements [begin, begin + count) of a tensor that is not finite, or, with
/// `rounds_to_bf16`, becomes infinite by rounding. @returns `bad_checkpoint` with tensor, index and
/// value of the first.
result<void> check_finite(const tensor_view& tensor, std::size_t begin, std::size_t count,
                          bool rounds_to_bf16, const tensor_source& source);

} // namespace rollcast
