#pragma once

#include "engine/numerics/profile.hpp"

#include <span>

namespace rollcast {

/// Every profile of this build, the default first.
std::span<const numerics_profile> all_profiles() noexcept;

} // namespace rollcast
