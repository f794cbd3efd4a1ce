#pragma once

#include "cli/device.hpp"
#include "engine/draft/model_drafter.hpp"

#include <memory>

namespace rollcast::cli {

/// Fills in what the options leave open of a drafter's model: its directory where it lies in the
/// model's own, and the shape of its drafts, by SGLang's rules: without `num-steps` a Llama drafts
/// trees of 5 steps, 4 paths and 8 tokens, every other model chains of 3 steps and so 4 tokens; one
/// path has steps + 1 tokens. Without a drafter's model it changes nothing.
///
/// Fails with `bad_config` and one line for `eagle3` without a directory, a directory that no way
/// to draft uses, a shape that is none, and on a GPU, which computes no drafter's model.
result<void> settle_drafts(device_options& options);

/// Loads the drafter's model, if there is to be one, beside its target. @pre `settle_drafts`
/// @param pool  The target's threads. @param noise  Only for measuring is it not shared.
/// @returns null without one. Fails as `load_draft` and `make_cpu_drafting`.
result<std::shared_ptr<model_drafter>> open_drafter(const device_options& options,
                                                    const backend& target,
                                                    std::shared_ptr<thread_pool> pool,
                                                    draft_noise noise = draft_noise::shared);

/// Has updates of the device's weights change the drafter's too (`with_draft_weights`).
std::unique_ptr<backend> with_draft(std::unique_ptr<backend> device, model_drafter& drafter,
                                    const device_options& options);

} // namespace rollcast::cli
