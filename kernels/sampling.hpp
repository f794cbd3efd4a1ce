#pragma once

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// What decides one token. Temperature 0 is argmax; then log-probabilities are those of temperature
/// 1 and filters do nothing. Zero `top_k`, `top_p` = 1 and `min_p` = 0 switch those filters off.
///
/// The order is the field's (vLLM, SGLang): temperature, bans, top-k, top-p, min-p. With tokens
/// sorted by (z = logits / temperature descending, id ascending) and banned ones taken out, top-k
/// keeps the first k; top-p keeps the shortest prefix of these, at least one token, whose share of
/// their probability is at least p; min-p then drops those with less than `min_p` times the
/// probability of the most likely token that is not banned.
struct sample_params {
  float temperature = 1.0f;
  float top_p = 1.0f;
  std::uint32_t top_k = 0;
  float min_p = 0.0f;
  std::uint64_t seed = 0;               ///< The response's seed.
  std::uint32_t position = 0;           ///< Absolute position of the token being produced.
  const std::int32_t* banned = nullptr; ///< Token ids that may not be chosen (stop ids before
  std::size_t banned_count = 0;         ///< `min_new_tokens`), in range; repeats do no harm.
};

struct sampled_token {
  std::int32_t token;
  float logprob;   ///< log_softmax(logits / temperature)[token] over the full vocabulary.
  float kept_mass; ///< Probability, over the full vocabulary, of the tokens that bans, top-k, top-p
                   ///< and min-p left; 1 without any of them and at temperature 0.
};

/// Bytes of scratch that `sample_token_cpu` needs for a vocabulary.
std::size_t sample_scratch_bytes(std::size_t vocabulary) noexcept;

/// Chooses a token: argmax over the kept tokens of logits / temperature + Gumbel noise, where the
/// noise is a function of (seed, position, token id) alone. Ties go to the lowest token id.
/// @param logits  [vocabulary], finite or -inf; NaN is treated as -inf, +inf as the largest float.
/// @param scratch `sample_scratch_bytes` bytes, 64-byte aligned; contents do not matter.
/// @returns the token. A row of nothing but -inf gives the lowest id that is not banned, with
///          log-probability -inf. If every token with a probability is banned, the lowest id that
///          is not, with log-probability -inf; if every token is banned, bans are ignored for the
///          choice. In these three cases `kept_mass` is 0.
/// Numerics: z is one true f32 division. w = exp_f32(z - z_max); its sum is of 40-bit fixed-point
///           integers (`fixed_weight`), so it is exact and no order can change it; `logprob` is
///           (z - z_max) - log_f64(sum) in double, rounded once. The score of a token is z +
///           gumbel(token_bits(seed, position, id)) in double (kernels/numerics.hpp). Filters
///           compare and add fixed-point weights. Every instruction set gives the same bits.
///           Only tokens that the bound w * exp(z_max - best score) lets through get their
///           logarithms; the token is that of the brute force
///           (tests/unit/kernels/sampling_test.cpp).
/// Cost:     three passes over the row, one of them Philox; a filter adds two and a small sort.
sampled_token sample_token_cpu(const float* logits, std::size_t vocabulary,
                               const sample_params& params, std::byte* scratch) noexcept;

/// log_softmax(logits / temperature)[token], by the same code and so with the same bits as
/// `sample_token_cpu` reports for that token.
float token_logprob_cpu(const float* logits, std::size_t vocabulary, float temperature,
                        std::int32_t token) noexcept;

} // namespace rollcast::kernels
