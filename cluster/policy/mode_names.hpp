#pragma once

#include "cluster/policy/view.hpp"

#include <array>
#include <optional>
#include <string_view>
#include <utility>

/// The names of the modes as flags, files and messages spell them.
namespace rollcast::policy {

constexpr std::array<std::pair<std::string_view, mode>, 4> mode_names{{{"static", mode::static_},
                                                                       {"divided", mode::divided},
                                                                       {"context", mode::context},
                                                                       {"oracle", mode::oracle}}};

/// The mode of that name; nothing for another name.
constexpr std::optional<mode> find_mode(std::string_view name) noexcept {
  for (const auto& [known, how] : mode_names)
    if (known == name)
      return how;
  return std::nullopt;
}

} // namespace rollcast::policy
