#include "cli/drafting.hpp"

#include "engine/backend/cpu_drafting.hpp"
#include "engine/backend/drafted_backend.hpp"
#include "engine/draft/speculator.hpp"
#include "engine/model/draft_model.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>
#include <utility>

namespace rollcast::cli {

namespace {

/// Of a Llama, and of every other model.
constexpr model_draft_options tree_shape{.steps = 5, .topk = 4, .tokens = 8};
constexpr model_draft_options chain_shape{.steps = 3, .topk = 1, .tokens = 4};

/// The kind of drafter in a directory, by what its config.json says.
result<draft_kind> kind_in(const std::filesystem::path& directory) {
  const auto eagle = is_eagle3(directory);
  if (!eagle)
    return fail(eagle);
  return *eagle ? draft_kind::eagle3 : draft_kind::mtp;
}

/// True if the drafter is an MTP layer of the target's checkpoint.
bool is_own(const device_options& options) {
  std::error_code ignored;
  return std::filesystem::equivalent(options.draft_model, options.model, ignored);
}

model_draft_options shape_of(const device_options& options) {
  return {.steps = options.draft_steps, .topk = options.draft_topk, .tokens = options.draft_tokens};
}

result<void> settle_shape(device_options& options, const model_config& target) {
  if (options.draft_steps == 0) {
    if (options.draft_topk != 0 || options.draft_tokens != 0)
      return fail(errc::bad_config, "--speculative-eagle-topk and --speculative-num-draft-tokens "
                                    "need --speculative-num-steps: give all three, or none");
    const auto& shape = target.family == architecture::llama ? tree_shape : chain_shape;
    options.draft_steps = shape.steps;
    options.draft_topk = shape.topk;
    options.draft_tokens = shape.tokens;
    return {};
  }
  options.draft_topk = std::max(1u, options.draft_topk);
  if (options.draft_topk == 1) {
    const auto tokens = options.draft_steps + 1;
    if (options.draft_tokens != 0 && options.draft_tokens != tokens)
      spdlog::warn("--speculative-num-draft-tokens is {}, as of every chain of {} steps", tokens,
                   options.draft_steps);
    options.draft_tokens = tokens;
  } else if (options.draft_tokens == 0) {
    return fail(errc::bad_config, "--speculative-eagle-topk " + std::to_string(options.draft_topk)
                                    + " needs --speculative-num-draft-tokens");
  }
  if (const auto why = check_shape_of(shape_of(options)); !why.empty())
    return fail(errc::bad_config, why);
  return {};
}

} // namespace

result<void> settle_drafts(device_options& options) {
  const auto how = find_speculation(options.speculate);
  const bool wanted = how == speculation::mtp || how == speculation::eagle3;
  if (!wanted && how != speculation::auto_) {
    if (!options.draft_model.empty())
      return fail(errc::bad_config, "--draft-model is given, but --speculate is "
                                      + options.speculate + ": give mtp, eagle3 or auto");
    if (options.draft_steps != 0 || options.draft_topk != 0 || options.draft_tokens != 0)
      return fail(errc::bad_config, "--speculative-num-steps, -eagle-topk and -num-draft-tokens "
                                    "are for a draft model, but --speculate is "
                                      + options.speculate + ": give mtp, eagle3 or auto");
    return {};
  }
  const auto config = load_config(options.model);
  if (!config)
    return fail(config);
  if (how == speculation::eagle3 && options.draft_model.empty())
    return fail(errc::bad_config, "--speculate eagle3 needs --draft-model: the directory of an "
                                  "EAGLE-3 head of this model");
  const bool native = options.draft_model.empty() && config->mtp_layers > 0;
  const auto gpu = gpu_of(options.device);
  if (!gpu)
    return fail(gpu);
  if (*gpu && (wanted || !options.draft_model.empty()))
    return fail(errc::bad_config, "--device " + options.device
                                    + " computes no drafter's model yet: give --speculate off, "
                                      "self, group or auto without --draft-model, or --device cpu");
  if (*gpu || (how == speculation::auto_ && options.draft_model.empty() && !native))
    return {};
  if (options.draft_model.empty())
    options.draft_model = options.model; // then a model without an MTP layer is refused by name
  return settle_shape(options, *config);
}

result<std::shared_ptr<model_drafter>> open_drafter(const device_options& options,
                                                    const backend& target,
                                                    std::shared_ptr<thread_pool> pool,
                                                    draft_noise noise) {
  if (options.draft_model.empty())
    return std::shared_ptr<model_drafter>{};
  const auto config = load_config(options.model);
  if (!config)
    return fail(config);
  auto kind = result<draft_kind>{draft_kind::mtp};
  if (options.speculate == "eagle3")
    kind = draft_kind::eagle3;
  else if (options.speculate == "auto")
    kind = kind_in(options.draft_model);
  if (!kind)
    return fail(kind);
  load_options load;
  load.threads = pool->size();
  const auto& profile = target.numerics();
  const auto draft = load_draft(options.draft_model, *kind, *config, profile.arithmetic, load);
  if (!draft && options.speculate == "auto" && is_own(options)) {
    // Checkpoints that were trained further often lack the layer that their config.json names.
    spdlog::warn("the model's own MTP layer does not draft: {}", draft.error().detail);
    return std::shared_ptr<model_drafter>{};
  }
  if (!draft)
    return fail(draft);
  cpu_backend_options device;
  device.pool = std::move(pool);
  auto shape = shape_of(options);
  shape.noise = noise;
  auto model = make_cpu_drafting(*draft, profile, device, target.shape(), options.max_batch, shape);
  if (!model)
    return fail(model);
  return std::make_shared<model_drafter>(std::move(*model), shape);
}

std::unique_ptr<backend> with_draft(std::unique_ptr<backend> device, model_drafter& drafter,
                                    const device_options& options) {
  return with_draft_weights(std::move(device), drafter.model().device,
                            is_own(options) ? drafter.model().layer_prefix : std::string{});
}

} // namespace rollcast::cli
