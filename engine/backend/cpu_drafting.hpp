#pragma once

#include "engine/backend/cpu_backend.hpp"
#include "engine/draft/model_drafter.hpp"
#include "engine/model/draft_model.hpp"

#include <cstdint>

namespace rollcast {

/// Makes a drafter's checkpoint computable on the CPU, beside a target with `target`'s options and
/// shape, in the same numerics: with KV for as many tokens as the target holds, which is its share
/// of one layer, and what the paths of `batch_max` trees take beside.
///
/// Fails as `make_cpu_backend`, and with `bad_config` for a context too short for one draft.
result<drafting_model> make_cpu_drafting(const draft_model& draft, const numerics_profile& profile,
                                         const cpu_backend_options& options,
                                         const device_shape& target, std::uint32_t batch_max,
                                         const model_draft_options& how);

} // namespace rollcast
