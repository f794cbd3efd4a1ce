#pragma once

#include "actors/node.hpp"
#include "engine/base/error.hpp"

#include <cstdint>

namespace rollcast::cli {

/// Heartbeats such that a silent peer is given up after `lost_after_ms`.
liveness_options liveness_of(std::uint32_t lost_after_ms);

/// Says why a role could not go on: to the parent when it started us and still waits, else on
/// stderr. @returns the exit code.
int fail_start(const error& e, int announce_fd);

} // namespace rollcast::cli
