#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/error.hpp"
#include "engine/tokenizer/tokenizer.hpp"

#include <filesystem>
#include <vector>

namespace rollcast::cli {

/// What every prompt gets unless its line says otherwise.
struct prompt_defaults {
  std::uint32_t group_size = 1;
  wire::sampling_params sampling;
};

/// Reads a prompts.jsonl: one object a line with `prompt` (text; needs `words`) or
/// `prompt_token_ids`, and optionally `id` (a string or a number), `group_size`, `seed` and
/// `sampling` (any of temperature, top_p, top_k, min_p, max_new_tokens, min_new_tokens,
/// stop_token_ids, ignore_eos). Fails with `io_failed`, `bad_prompt` or `bad_sampling` and
/// file:line; unknown keys are refused, so that a misspelt one is not ignored.
/// @param words  the model's tokenizer, or null when it has none.
result<std::vector<wire::prompt_group>> read_prompts(const std::filesystem::path& path,
                                                     const prompt_defaults& defaults,
                                                     const tokenizer* words);

} // namespace rollcast::cli
