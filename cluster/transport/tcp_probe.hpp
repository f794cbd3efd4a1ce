#pragma once

#include "engine/base/error.hpp"

#include <chrono>
#include <cstdint>
#include <string>

namespace rollcast {

/// Opens a TCP connection and closes it again, to learn whether somebody listens. Waits at most
/// `timeout` (name resolution apart). CAF's own connect blocks its I/O thread, for 39 s into a
/// partition, so nothing is handed to it before this has said yes. Fails with `peer_lost` (detail:
/// host, port, why) or `timed_out`.
result<void> probe_tcp(const std::string& host, std::uint16_t port,
                       std::chrono::milliseconds timeout);

} // namespace rollcast
