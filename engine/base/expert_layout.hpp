#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace rollcast {

/// How the ids of the experts that a model's router chose lie in memory: position after position,
/// of each the sparse layers in their order, of each layer the slots in theirs (the first is the
/// best), an id in `id_bytes` little-endian bytes.
struct expert_layout {
  std::uint32_t layers = 0;    ///< With experts; 0 in a dense model.
  std::uint32_t per_token = 0; ///< Experts that each of them chooses.
  std::uint32_t id_bytes = 0;  ///< 1, or 2 with more than 256 experts.

  constexpr std::size_t position_bytes() const noexcept {
    return std::size_t{layers} * per_token * id_bytes;
  }
  friend bool operator==(const expert_layout&, const expert_layout&) = default;
};

/// Positions [begin, end) of a response, its prompt's first.
struct position_range {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  constexpr std::uint32_t size() const noexcept { return end - begin; }
  friend bool operator==(const position_range&, const position_range&) = default;
};

/// Positions whose ids come with tokens [before, after) of a response: those whose passes made them
/// and, with the first of all, the prompt's before. The response's last token was fed to no pass,
/// so its position is never among them.
///
/// @param from  The first position whose ids are wanted at all.
constexpr position_range routed_positions(std::uint32_t from, std::uint32_t prompt_tokens,
                                          std::uint32_t before, std::uint32_t after) noexcept {
  const auto end = after > before ? prompt_tokens + after - 1 : 0;
  const auto begin = before > 0 ? prompt_tokens + before - 1 : 0;
  return {std::min(std::max(begin, from), end), end};
}

} // namespace rollcast
