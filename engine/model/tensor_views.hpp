#pragma once

#include "engine/base/error.hpp"
#include "engine/model/tensor_info.hpp"
#include "engine/model/tensor_plan.hpp"
#include "engine/model/tensor_source.hpp"

#include <optional>
#include <span>
#include <vector>

namespace rollcast {

/// What a loader has of each tensor of its plan, in the plan's order.
struct tensor_views {
  std::vector<tensor_info> infos; ///< Hashed where the base has the tensor, and not yet elsewhere.
  std::vector<std::optional<tensor_view>> views; ///< None for what the base has.
};

/// Views the planned tensors of `source`; with a base, those that it has, the others being the
/// base's.
///
/// @param base  Every tensor of the weights that are changed, in name order; none: `source` has
/// all.
/// @pre `check_names` has passed
/// @returns `bad_checkpoint` with one line for a shape that is not planned, and for a dtype that is
///          not the base's.
result<tensor_views> view_tensors(std::span<const planned_tensor> plan, const tensor_source& source,
                                  std::optional<std::span<const tensor_info>> base);

} // namespace rollcast
