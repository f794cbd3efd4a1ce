#pragma once

#include "engine/base/error.hpp"

namespace rollcast::cli {

inline constexpr int exit_done = 0;
inline constexpr int exit_check_failed = 1;
inline constexpr int exit_bad_input = 2;     ///< Bad usage or input; one line on stderr.
inline constexpr int exit_cluster_lost = 3;  ///< The cluster went away, or was never there.
inline constexpr int exit_out_of_memory = 4; ///< In the middle of work; a start that fails is 2.
inline constexpr int exit_cancelled = 130;   ///< Ctrl-C; what had been generated is written.

/// The exit code that goes with an error: 3 for lost or silent peers, 130 for Ctrl-C, else 2.
int exit_code_of(const error& e) noexcept;

/// Writes one line on stderr, "rollcast: <what, where, the numbers, what to do>".
/// @returns `exit_code_of(e)`.
int refuse(const error& e);

/// As `refuse`, for a scheduler that cannot be reached to begin with: that is bad input, not a lost
/// cluster. @returns `exit_bad_input`.
int refuse_contact(const error& e);

} // namespace rollcast::cli
