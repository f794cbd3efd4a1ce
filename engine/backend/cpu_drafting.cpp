#include "engine/backend/cpu_drafting.hpp"

#include <algorithm>
#include <string>

namespace rollcast {

namespace {

/// A small block keeps what a branch copies small.
constexpr std::uint32_t draft_block_tokens = 16;

constexpr std::uint64_t blocks_of(std::uint64_t tokens) {
  return (tokens + draft_block_tokens - 1) / draft_block_tokens;
}

} // namespace

result<drafting_model> make_cpu_drafting(const draft_model& draft, const numerics_profile& profile,
                                         const cpu_backend_options& options,
                                         const device_shape& target, std::uint32_t batch_max,
                                         const model_draft_options& how) {
  if (const auto why = check_shape_of(how); !why.empty())
    return fail(errc::bad_config, why);
  const auto& config = draft.weights->config();
  const auto positions = std::min<std::uint64_t>(config.max_positions, target.positions_max);
  if (positions <= how.steps)
    return fail(errc::bad_config, "the draft has " + std::to_string(positions) + " positions"
                                    + ", too few for speculative-num-steps "
                                    + std::to_string(how.steps));
  const std::uint64_t held = std::uint64_t{target.kv_blocks} * target.block_tokens;
  // Every context has a part of a block to itself; a tree has two sets of them for each path.
  const std::uint64_t spare = (1 + 2 * std::uint64_t{how.topk}) * (1 + blocks_of(how.steps));
  auto device = options;
  device.block_tokens = draft_block_tokens;
  device.kv_blocks = static_cast<std::uint32_t>(
    std::min<std::uint64_t>(blocks_of(held) + batch_max * spare, UINT32_MAX));
  device.rows_max = std::max(target.rows_max, batch_max * how.topk);
  device.logit_rows_max = batch_max * how.topk;
  device.positions_max = target.positions_max;
  auto made = make_cpu_backend(draft.weights, profile, device);
  if (!made)
    return fail(made);
  drafting_model out;
  out.device = std::move(*made);
  out.wants = {config.draft.target_layers, config.draft.kind == draft_kind::mtp};
  out.width = config.draft.state_width;
  if (config.draft.kind == draft_kind::eagle3)
    out.own.layers = {0};
  else
    out.own.last = true;
  out.own_width = config.hidden;
  out.target_ids = draft.target_ids;
  out.layer_prefix = config.draft.layer_prefix;
  return out;
}

} // namespace rollcast
