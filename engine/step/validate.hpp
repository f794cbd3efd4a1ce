#pragma once

#include "engine/base/error.hpp"
#include "engine/step/request.hpp"

#include <cstdint>

namespace rollcast {

/// Checks what a user may get wrong about sampling. Fails with `bad_sampling`: the name, the value
/// and the range.
result<void> validate(const sampling_params& sampling, std::uint32_t vocabulary);

/// Checks token ids and lengths of a prompt (and what follows it) against a model. Fails with
/// `bad_prompt`.
result<void> validate_tokens(std::span<const token_id> tokens, std::uint32_t vocabulary,
                             std::uint32_t context_max);

} // namespace rollcast
