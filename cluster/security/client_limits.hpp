#pragma once

#include <cstdint>

namespace rollcast {

/// What one client may have under way at a time, over all its connections. Generous by default:
/// they keep one client's mistake from becoming everybody's.
struct client_limits {
  std::uint32_t batches = 64;          ///< Not finished.
  std::uint32_t groups = 262'144;      ///< Unfinished, of those batches.
  std::uint32_t kept = 512;            ///< Batches whose end it has not acknowledged.
  std::uint32_t responses = 1'500'000; ///< Of those batches.
  std::uint32_t requests = 16'384;     ///< Given to the scheduler, not answered.
  /// Of those batches: their prompts, and what was generated and not acknowledged. Looked at when a
  /// batch is submitted, so what runs may grow beyond it.
  std::uint32_t tokens = 1u << 28;
  std::uint32_t connections = 256; ///< That have spoken, of a client with keys.
  friend bool operator==(const client_limits&, const client_limits&) = default;
};

} // namespace rollcast
