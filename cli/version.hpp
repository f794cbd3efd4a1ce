#pragma once

#include <string>

namespace rollcast::cli {

/// What `--version` prints: the version, on lines of their own the numerics profiles, the
/// instruction sets of this machine (the one in use first) and how this binary was built. The last
/// line has no newline.
std::string version_text();

} // namespace rollcast::cli
