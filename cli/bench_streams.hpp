#pragma once

#include "engine/base/ids.hpp"

#include <cstdint>
#include <vector>

namespace rollcast::cli {

using group_tokens = std::vector<std::vector<token_id>>; ///< By response.

/// Makes up a group's responses of `length` tokens below 32000. Siblings are alike because they
/// share phrases (4 to 32 random tokens, a phrase for 16 tokens of `length`) and what usually
/// follows each; they differ by where they begin, by leaps and by slips.
group_tokens make_group(std::uint64_t seed, std::uint32_t responses, std::uint32_t length);

} // namespace rollcast::cli
