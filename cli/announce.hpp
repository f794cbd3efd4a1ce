#pragma once

#include "engine/base/error.hpp"

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <string>

namespace rollcast::cli {

/// A child process tells its parent, in one line of JSON on an inherited descriptor, that it is
/// ready and where it listens, or why it is not. Does nothing for a negative descriptor.
void announce(int fd, const nlohmann::json& what);

/// Waits for that line. Fails with the error that the child announced, `peer_lost` if it ended
/// without one, `timed_out`, or `cancelled` when this process was asked to stop.
result<nlohmann::json> await_announcement(int fd, std::chrono::steady_clock::time_point deadline);

/// What a child announces instead when it cannot start.
nlohmann::json announcement_of(const error& e);

} // namespace rollcast::cli
