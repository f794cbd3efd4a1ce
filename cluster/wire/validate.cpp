#include "cluster/wire/validate.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace rollcast::wire {
namespace {

std::string number(float x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(x));
  return text;
}

std::string name_of(std::size_t at, const prompt_group& group) {
  auto name = "group " + std::to_string(at);
  if (!group.id.empty())
    name += " (id " + clipped(group.id, 40) + ")";
  return name;
}

result<void> validate_group(std::size_t at, const prompt_group& group) {
  // The id goes into messages and files: it is checked before it is repeated.
  if (group.id.size() > limits.id_bytes || has_control_character(group.id))
    return fail(errc::bad_prompt, "group " + std::to_string(at) + ": an id of "
                                    + std::to_string(group.id.size()) + " bytes; at most "
                                    + std::to_string(limits.id_bytes)
                                    + " without control characters are allowed");
  const auto name = name_of(at, group);
  if (group.prompt_token_ids.empty())
    return fail(errc::bad_prompt, name + ": the prompt is empty, give at least 1 token id");
  if (group.group_size == 0 || group.group_size > limits.group_size)
    return fail(errc::bad_prompt, name + ": group_size " + std::to_string(group.group_size)
                                    + " is outside 1.." + std::to_string(limits.group_size));
  if (const auto ok = validate_tokens(group.prompt_token_ids, errc::bad_prompt, name + ": prompt");
      !ok)
    return fail(ok);
  if (group.sampling)
    return validate(*group.sampling, name);
  return {};
}

} // namespace

bool has_control_character(std::string_view text) noexcept {
  return std::any_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f;
  });
}

result<void> validate_tokens(const std::vector<token_id>& tokens, errc code,
                             const std::string& what) {
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [](token_id t) { return t < 0; });
  if (bad == tokens.end())
    return {};
  return fail(code, what + ": token id " + std::to_string(*bad) + " at position "
                      + std::to_string(bad - tokens.begin()) + " is negative");
}

std::string clipped(std::string_view text, std::size_t most) {
  if (text.size() <= most)
    return std::string{text};
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xc0) == 0x80)
    --most;
  return std::string{text.substr(0, most)};
}

std::string wrong_with_temperature(float temperature) {
  if (!std::isfinite(temperature) || temperature < 0)
    return "temperature " + number(temperature) + " must be a finite number >= 0";
  if (temperature > 0 && temperature < 1e-6f)
    return "temperature " + number(temperature) + " is below 1e-6, use 0 for greedy";
  return {};
}

result<void> validate(const sampling_params& s, std::string_view where) {
  const auto refuse = [&](std::string why) -> result<void> {
    return fail(errc::bad_sampling, std::string{where} + ": " + why);
  };
  if (auto wrong = wrong_with_temperature(s.temperature); !wrong.empty())
    return refuse(std::move(wrong));
  if (!(s.top_p > 0 && s.top_p <= 1))
    return refuse("top_p " + number(s.top_p) + " must be above 0 and at most 1 (1 is off)");
  if (!(s.min_p >= 0 && s.min_p <= 1))
    return refuse("min_p " + number(s.min_p) + " must be within 0..1 (0 is off)");
  if (s.max_new_tokens == 0 || s.max_new_tokens > limits.new_tokens)
    return refuse("max_new_tokens " + std::to_string(s.max_new_tokens) + " is outside 1.."
                  + std::to_string(limits.new_tokens));
  if (s.min_new_tokens > s.max_new_tokens)
    return refuse("min_new_tokens " + std::to_string(s.min_new_tokens) + " is above max_new_tokens "
                  + std::to_string(s.max_new_tokens));
  if (s.stop_token_ids.size() > limits.stop_tokens)
    return refuse(std::to_string(s.stop_token_ids.size()) + " stop_token_ids, at most "
                  + std::to_string(limits.stop_tokens) + " are allowed");
  return validate_tokens(s.stop_token_ids, errc::bad_sampling,
                         std::string{where} + ": stop_token_ids");
}

result<void> validate_batch_key(std::string_view key) {
  if (key.empty() || key.size() > limits.key_bytes || has_control_character(key))
    return fail(errc::bad_config, "batch_key of " + std::to_string(key.size()) + " bytes: give 1.."
                                    + std::to_string(limits.key_bytes)
                                    + " bytes without control characters");
  return {};
}

result<void> validate(const submit_batch& batch) {
  if (const auto ok = validate_batch_key(batch.batch_key); !ok)
    return fail(ok);
  if (batch.policy.size() > limits.key_bytes || has_control_character(batch.policy))
    return fail(errc::bad_config, "policy name of " + std::to_string(batch.policy.size())
                                    + " bytes: at most " + std::to_string(limits.key_bytes)
                                    + " without control characters are allowed");
  if (batch.groups.empty())
    return fail(errc::bad_prompt, "the batch has no groups, give at least 1 prompt");
  if (batch.groups.size() > limits.groups)
    return fail(errc::frame_too_large, "the batch has " + std::to_string(batch.groups.size())
                                         + " groups, at most " + std::to_string(limits.groups)
                                         + " are allowed: split it");
  if (const auto ok = validate(batch.sampling, "batch"); !ok)
    return fail(ok);
  std::uint64_t responses = 0;
  for (std::size_t at = 0; at < batch.groups.size(); ++at) {
    if (const auto ok = validate_group(at, batch.groups[at]); !ok)
      return fail(ok);
    responses += batch.groups[at].group_size;
  }
  if (responses > limits.responses)
    return fail(errc::frame_too_large, "the batch asks for " + std::to_string(responses)
                                         + " responses, at most " + std::to_string(limits.responses)
                                         + " are allowed: split it");
  return {};
}

} // namespace rollcast::wire
