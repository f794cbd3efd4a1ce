#pragma once

#include <cstdint>
#include <filesystem>

namespace rollcast {

/// Bytes of memory that this process may use: the machine's, or less where its control group, or
/// one above it, has a limit (version 1 or 2). A container sees all memory of its node, and is
/// killed above its limit. The paths are for tests.
std::uint64_t machine_memory_bytes(const std::filesystem::path& groups = "/sys/fs/cgroup",
                                   const std::filesystem::path& own = "/proc/self/cgroup");

} // namespace rollcast
