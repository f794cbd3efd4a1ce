#pragma once

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// What decides one token. Temperature 0 is argmax; then log-probabilities are those of temperature
/// 1. Zero `top_k`, `top_p` = 1 and `min_p` = 0 switch those filters off.
struct sample_params {
  float temperature = 1.0f;
  float top_p = 1.0f;
  std::uint32_t top_k = 0;
  float min_p = 0.0f;
  std::uint64_t seed = 0;               ///< The response's seed.
  std::uint32_t position = 0;           ///< Absolute position of the token being produced.
  const std::int32_t* banned = nullptr; ///< Token ids that may not be chosen (stop ids before
  std::size_t banned_count = 0;         ///< `min_new_tokens`), in range.
};

struct sampled_token {
  std::int32_t token;
  float logprob;   ///< log_softmax(logits / temperature)[token] over the full vocabulary.
  float kept_mass; ///< Probability of the tokens that top-k, top-p, min-p and bans left; else 1.
};

/// Bytes of scratch that `sample_token_cpu` needs for a vocabulary.
std::size_t sample_scratch_bytes(std::size_t vocabulary) noexcept;

/// Chooses a token: argmax over the kept tokens of logits / temperature + Gumbel noise, where the
/// noise is a function of (seed, position, token id) alone. Ties go to the lowest token id.
/// @param logits  [vocabulary], finite or -inf; NaN is treated as -inf.
/// @param scratch `sample_scratch_bytes` bytes, 64-byte aligned; contents do not matter.
sampled_token sample_token_cpu(const float* logits, std::size_t vocabulary,
                               const sample_params& params, std::byte* scratch) noexcept;

/// log_softmax(logits / temperature)[token], by the same code and so with the same bits as
/// `sample_token_cpu` reports for that token.
float token_logprob_cpu(const float* logits, std::size_t vocabulary, float temperature,
                        std::int32_t token) noexcept;

} // namespace rollcast::kernels
