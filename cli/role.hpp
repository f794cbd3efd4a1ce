#pragma once

#include "actors/node.hpp"
#include "engine/base/error.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace rollcast::cli {

/// Heartbeats such that a silent peer is given up within `lost_after_ms`.
liveness_options liveness_of(std::uint32_t lost_after_ms);

/// Whether an address to bind means every address of the machine, and so says nobody where to dial.
bool is_wildcard(std::string_view address) noexcept;

/// The ZeroMQ endpoint to bind at that address; port 0 takes any.
std::string endpoint_at(const std::string& address, std::uint16_t port);

/// Says why a role could not go on: to the parent when it started us and still waits, else on
/// stderr. @returns the exit code.
int fail_start(const error& e, int announce_fd);

} // namespace rollcast::cli
