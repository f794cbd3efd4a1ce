#include "cli/bench_streams.hpp"

#include "engine/base/prng.hpp"

#include <algorithm>

namespace rollcast::cli {

namespace {

constexpr std::uint64_t vocabulary = 32'000;
constexpr std::uint32_t tokens_per_phrase = 16; ///< A group has a phrase for so many of a response.
constexpr std::uint64_t phrase_min = 4;
constexpr std::uint64_t phrase_spread = 29;
constexpr std::uint32_t follows_percent = 80; ///< The phrase that usually comes next, does.
constexpr std::uint32_t slip_percent = 3;     ///< A token is another one.

} // namespace

group_tokens make_group(std::uint64_t seed, std::uint32_t responses, std::uint32_t length) {
  prng random{seed};
  const std::uint64_t phrases = std::max(1u, length / tokens_per_phrase);
  std::vector<std::vector<token_id>> phrase(phrases);
  for (auto& p : phrase) {
    p.resize(phrase_min + random.below(phrase_spread));
    for (auto& token : p)
      token = static_cast<token_id>(random.below(vocabulary));
  }
  group_tokens out(responses);
  for (auto& response : out) {
    auto at = random.below(phrases);
    while (response.size() < length) {
      for (const auto token : phrase[at])
        response.push_back(
          random.chance(slip_percent) ? static_cast<token_id>(random.below(vocabulary)) : token);
      at = random.chance(follows_percent) ? (at + 1) % phrases : random.below(phrases);
    }
    response.resize(length);
  }
  return out;
}

} // namespace rollcast::cli
