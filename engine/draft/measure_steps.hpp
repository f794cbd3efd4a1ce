#pragma once

#include "engine/backend/backend.hpp"
#include "engine/draft/draft_budget.hpp"

namespace rollcast {

/// Measures forward passes of 1 to `logit_rows_max` rows that all get logits, as verification does.
/// Takes the least of a few repeats of each, about a second for a model of 100 M parameters.
/// @pre nobody uses the device's KV blocks yet; their content is garbage afterwards.
/// @param taken  Of a drafter's model: the width of its target's states. @pre it has borrowed.
step_costs measure_steps(backend& device, std::size_t taken = 0);

} // namespace rollcast
