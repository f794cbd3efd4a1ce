#pragma once

#include <string_view>

namespace rollcast {

/// status_page.html: what a scheduler serves at /. It asks /status.json (cluster_view.hpp) once a
/// second and loads nothing else.
std::string_view status_page() noexcept;

} // namespace rollcast
