#pragma once

#include "cluster/sim/workload.hpp"

#include <filesystem>
#include <iosfwd>

namespace rollcast::sim {

/// Reads a trace: the header line `group,index,prompt_tokens,output_tokens`, then one response a
/// line, unsigned decimals. Blank lines are skipped; order does not matter. `tokens_max` of the
/// result is the longest output, or `tokens_max` if that is above 0. Fails with `io_failed` or
/// `bad_config` and file:line: a wrong header or field count, a number out of range, an output of
/// 0 tokens or above `tokens_max`, a response listed twice, no response at all.
result<workload> read_trace(const std::filesystem::path& path, std::uint32_t tokens_max = 0);

/// Writes what `read_trace` reads.
void write_trace(std::ostream& out, const std::vector<traced_response>& responses);

} // namespace rollcast::sim
