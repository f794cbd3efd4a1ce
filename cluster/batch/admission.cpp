#include "cluster/batch/admission.hpp"

#include "cluster/wire/validate.hpp"

#include <algorithm>

namespace rollcast {
namespace {

/// What a result may take of a message, and at most takes for a token of prompt or response.
constexpr std::size_t result_bytes = wire::limits.message_bytes - (std::size_t{1} << 20);
constexpr std::size_t result_token_bytes = 13;

result<void> check_stop_ids(const wire::sampling_params& sampling, const std::string& where,
                            const cluster_model& model) {
  for (const auto id : sampling.stop_token_ids)
    if (id < 0 || static_cast<std::uint32_t>(id) >= model.vocabulary)
      return fail(errc::bad_sampling, where + ": stop token id " + std::to_string(id)
                                        + " is outside the vocabulary of "
                                        + std::to_string(model.vocabulary));
  return {};
}

result<void> check_prompt(const wire::prompt_group& group, const wire::sampling_params& sampling,
                          const std::string& where, const cluster_model& model) {
  const auto& prompt = group.prompt_token_ids;
  if (prompt.size() >= model.context_max)
    return fail(errc::bad_prompt, where + ": prompt of " + std::to_string(prompt.size())
                                    + " tokens leaves no room in the context of "
                                    + std::to_string(model.context_max));
  for (std::size_t i = 0; i < prompt.size(); ++i)
    if (prompt[i] < 0 || static_cast<std::uint32_t>(prompt[i]) >= model.vocabulary)
      return fail(errc::bad_prompt, where + ": token id " + std::to_string(prompt[i])
                                      + " at position " + std::to_string(i)
                                      + " is outside the vocabulary of "
                                      + std::to_string(model.vocabulary));
  const auto longest = prompt.size() + tokens_max(sampling, prompt.size(), model.context_max);
  if (longest > model.kv_tokens_max)
    return fail(errc::bad_prompt, where + ": " + std::to_string(prompt.size())
                                    + " prompt and up to " + std::to_string(longest - prompt.size())
                                    + " new tokens need KV for " + std::to_string(longest)
                                    + ", the largest worker holds "
                                    + std::to_string(model.kv_tokens_max)
                                    + "; lower max_new_tokens or give workers more KV blocks");
  return {};
}

/// Checks that a result with ids of experts fits a message.
result<void> check_experts(const wire::prompt_group& group, const wire::sampling_params& sampling,
                           std::uint32_t from, const std::string& where,
                           const cluster_model& model) {
  const auto prompt = static_cast<std::uint32_t>(group.prompt_token_ids.size());
  const auto tokens = tokens_max(sampling, prompt, model.context_max);
  const auto positions = routed_positions(from, prompt, 0, tokens).size();
  const auto bytes = positions * model.experts->position_bytes();
  const auto all = bytes + std::uint64_t{result_token_bytes} * (prompt + tokens);
  if (all <= result_bytes)
    return {};
  return fail(errc::bad_config, where + ": ids of experts of up to " + std::to_string(positions)
                                  + " positions, " + std::to_string(model.experts->position_bytes())
                                  + " bytes each, do not fit a message of "
                                  + std::to_string(wire::limits.message_bytes)
                                  + " bytes; raise routed_experts_from or lower max_new_tokens");
}

} // namespace

std::uint32_t tokens_max(const wire::sampling_params& sampling, std::size_t prompt_tokens,
                         std::uint32_t context_max) noexcept {
  const auto room = context_max > prompt_tokens ? context_max - prompt_tokens : 0;
  return static_cast<std::uint32_t>(std::min<std::size_t>(sampling.max_new_tokens, room));
}

result<void> check_policy(const std::string& name) {
  if (name.empty() || name == "static" || name == "divided" || name == "context")
    return {};
  if (name == "oracle")
    return fail(errc::bad_config,
                "policy 'oracle' needs the lengths before they are generated, which only "
                "rollcast simulate has; give static, divided or context");
  return fail(errc::bad_config, "no policy '" + name + "'; there are static, divided and context");
}

result<void> check_batch(const wire::submit_batch& spec, const cluster_model& model) {
  if (auto policy = check_policy(spec.policy); !policy)
    return policy;
  if (spec.required_weight_version && *spec.required_weight_version != model.weight_version)
    return fail(errc::stale_epoch,
                "the batch requires weight version " + std::to_string(*spec.required_weight_version)
                  + ", the cluster serves " + std::to_string(model.weight_version));
  if (auto ids = check_stop_ids(spec.sampling, "batch", model); !ids)
    return ids;
  const bool wants_experts = spec.routed_experts_from && model.experts;
  if (wants_experts && model.experts->layers == 0)
    return fail(errc::bad_config, "the batch asks for ids of experts from position "
                                    + std::to_string(*spec.routed_experts_from)
                                    + " on, and the model has no experts; leave out "
                                      "routed_experts_from (--routed-experts)");
  for (std::size_t g = 0; g < spec.groups.size(); ++g) {
    const auto& group = spec.groups[g];
    const auto where = "group " + std::to_string(g);
    if (group.sampling)
      if (auto ids = check_stop_ids(*group.sampling, where, model); !ids)
        return ids;
    const auto& sampling = group.sampling ? *group.sampling : spec.sampling;
    if (auto prompt = check_prompt(group, sampling, where, model); !prompt)
      return prompt;
    if (!wants_experts)
      continue;
    if (auto fits = check_experts(group, sampling, *spec.routed_experts_from, where, model); !fits)
      return fits;
  }
  return {};
}

} // namespace rollcast
