#pragma once

#include "engine/base/ids.hpp"
#include "kernels/sampling.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace rollcast {

/// Which noise a drafter's model chooses its tokens with. What is verified never depends on it.
enum class draft_noise : std::uint8_t {
  shared,      ///< That of the target, so that both tend to choose the same token.
  independent, ///< Noise of its own: how often two models say the same by chance.
  none,        ///< The most likely token.
};

/// Returns the noise of a name: "shared", "independent" or "none"; nothing for another.
std::optional<draft_noise> find_draft_noise(std::string_view name);

/// A token that a drafter's model proposes.
struct proposed_token {
  token_id token = 0;    ///< Of the target's vocabulary.
  float probability = 0; ///< The model's word that it is what the target will choose.
};

/// Chooses what a target with such logits would most likely choose: the tokens with the highest
/// logits / temperature + noise, where the noise is a function of (seed, position, the target's
/// token id), filtered as the target's are. Their probabilities are the softmax of just these
/// sums: with the noise known, it is they that the target's own sums lie near.
class draft_chooser {
public:
  /// @param target_ids  The target's token of each logit; empty: its own index. Must live as long.
  draft_chooser(std::span<const token_id> target_ids, draft_noise noise)
    : target_ids_(target_ids), noise_(noise) {}

  /// Puts the `most` best tokens into `out`, best first, ties to the lower index; fewer if fewer
  /// have a chance, none if no logit is a number.
  /// Numerics: of no concern; tokens less likely than e^-9 of the likeliest are left out.
  void choose(std::span<const float> logits, const kernels::sample_params& how, std::size_t most,
              std::vector<proposed_token>& out);

private:
  struct candidate {
    float z; ///< logit / temperature, later with noise.
    std::uint32_t index;
  };

  token_id target_of(std::uint32_t index) const {
    return target_ids_.empty() ? static_cast<token_id>(index) : target_ids_[index];
  }
  void collect(std::span<const float> logits, const kernels::sample_params& how);
  void filter(const kernels::sample_params& how);
  void add_noise(const kernels::sample_params& how);

  std::span<const token_id> target_ids_;
  draft_noise noise_;
  std::vector<candidate> candidates_;
};

} // namespace rollcast
