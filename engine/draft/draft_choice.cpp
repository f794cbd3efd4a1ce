#include "engine/draft/draft_choice.hpp"

#include "kernels/numerics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace rollcast {

namespace {

/// Tokens so far below the likeliest one, in log-probability, are not looked at.
constexpr float reach = 9.0f;

/// Makes a seed that has nothing to do with the target's.
constexpr std::uint64_t salt = 0x9e3779b97f4a7c15u;

/// The highest logit; NaN is never higher.
float highest(std::span<const float> logits) noexcept {
  std::array<float, 16> lanes;
  lanes.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + lanes.size() <= logits.size(); i += lanes.size())
    for (std::size_t lane = 0; lane < lanes.size(); ++lane)
      lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
  for (; i < logits.size(); ++i)
    lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  return *std::max_element(lanes.begin(), lanes.end());
}

} // namespace

std::optional<draft_noise> find_draft_noise(std::string_view name) {
  if (name == "shared")
    return draft_noise::shared;
  if (name == "independent")
    return draft_noise::independent;
  if (name == "none")
    return draft_noise::none;
  return std::nullopt;
}

/// Tokens that may be chosen, with what decides without noise.
void draft_chooser::collect(std::span<const float> logits, const kernels::sample_params& how) {
  candidates_.clear();
  const float top = highest(logits);
  if (!std::isfinite(top))
    return;
  const float temperature = how.temperature > 0 ? how.temperature : 1.0f;
  const float least = top - reach * temperature;
  const std::span<const std::int32_t> banned{how.banned, how.banned_count};
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] >= least))
      continue;
    const auto index = static_cast<std::uint32_t>(i);
    if (!banned.empty()
        && std::find(banned.begin(), banned.end(), target_of(index)) != banned.end())
      continue;
    candidates_.push_back({(logits[i] - top) / temperature, index});
  }
}

/// Top-k, top-p and min-p, in this order, as `kernels::sample_params` says.
void draft_chooser::filter(const kernels::sample_params& how) {
  if (how.temperature == 0 || (how.top_k == 0 && how.top_p >= 1 && how.min_p <= 0)
      || candidates_.empty())
    return;
  std::sort(candidates_.begin(), candidates_.end(), [](const candidate& a, const candidate& b) {
    return a.z != b.z ? a.z > b.z : a.index < b.index;
  });
  if (how.top_k != 0 && candidates_.size() > how.top_k)
    candidates_.resize(how.top_k);
  if (how.top_p < 1) {
    float total = 0;
    for (const auto& c : candidates_)
      total += std::exp(c.z);
    float kept = 0;
    std::size_t count = 0;
    while (count < candidates_.size() && kept < how.top_p * total)
      kept += std::exp(candidates_[count++].z);
    candidates_.resize(std::max<std::size_t>(count, 1));
  }
  const float least = candidates_.front().z + (how.min_p > 0 ? std::log(how.min_p) : -2 * reach);
  std::erase_if(candidates_, [&](const candidate& c) { return c.z < least; });
}

void draft_chooser::add_noise(const kernels::sample_params& how) {
  if (how.temperature == 0 || noise_ == draft_noise::none)
    return;
  const auto seed = noise_ == draft_noise::shared ? how.seed : how.seed ^ salt;
  for (auto& c : candidates_)
    c.z += static_cast<float>(kernels::gumbel(
      kernels::token_bits(seed, how.position, static_cast<std::uint32_t>(target_of(c.index)))));
}

void draft_chooser::choose(std::span<const float> logits, const kernels::sample_params& how,
                           std::size_t most, std::vector<proposed_token>& out) {
  out.clear();
  collect(logits, how);
  filter(how);
  add_noise(how);
  if (candidates_.empty())
    return;
  const auto better = [](const candidate& a, const candidate& b) {
    return a.z != b.z ? a.z > b.z : a.index < b.index;
  };
  const auto count = std::min(most, candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count),
                    candidates_.end(), better);
  float total = 0;
  for (const auto& c : candidates_)
    total += std::exp(c.z - candidates_.front().z);
  for (std::size_t i = 0; i < count; ++i)
    out.push_back({target_of(candidates_[i].index),
                   std::exp(candidates_[i].z - candidates_.front().z) / total});
}

} // namespace rollcast
