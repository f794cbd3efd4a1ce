#include "engine/step/validate.hpp"

#include <cmath>
#include <cstdio>
#include <string>

namespace rollcast {

namespace {

tl::unexpected<error> bad(const char* name, double value, const char* must) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return fail(errc::bad_sampling, std::string{name} + " is " + text + ": it must be " + must);
}

} // namespace

result<void> validate(const sampling_params& sampling, std::uint32_t vocabulary) {
  if (!std::isfinite(sampling.temperature) || sampling.temperature < 0.0f)
    return bad("temperature", static_cast<double>(sampling.temperature), "finite and at least 0");
  if (!(sampling.top_p > 0.0f && sampling.top_p <= 1.0f))
    return bad("top_p", static_cast<double>(sampling.top_p), "above 0 and at most 1");
  if (!(sampling.min_p >= 0.0f && sampling.min_p <= 1.0f))
    return bad("min_p", static_cast<double>(sampling.min_p), "0 to 1");
  if (sampling.max_new_tokens == 0)
    return bad("max_new_tokens", 0, "at least 1");
  if (sampling.min_new_tokens > sampling.max_new_tokens)
    return bad("min_new_tokens", sampling.min_new_tokens, "at most max_new_tokens");
  for (const token_id id : sampling.stop_token_ids)
    if (id < 0 || static_cast<std::uint32_t>(id) >= vocabulary)
      return fail(errc::bad_sampling, "stop token id " + std::to_string(id)
                                        + " is outside the vocabulary of "
                                        + std::to_string(vocabulary));
  return {};
}

result<void> validate_tokens(std::span<const token_id> tokens, std::uint32_t vocabulary,
                             std::uint32_t context_max) {
  if (tokens.empty())
    return fail(errc::bad_prompt, "the prompt is empty: it needs at least one token");
  if (tokens.size() >= context_max)
    return fail(errc::bad_prompt, "the prompt has " + std::to_string(tokens.size())
                                    + " tokens: the context of " + std::to_string(context_max)
                                    + " leaves no room for an answer");
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || static_cast<std::uint32_t>(tokens[i]) >= vocabulary)
      return fail(errc::bad_prompt, "token id " + std::to_string(tokens[i]) + " at position "
                                      + std::to_string(i) + " is outside the vocabulary of "
                                      + std::to_string(vocabulary));
  return {};
}

} // namespace rollcast
