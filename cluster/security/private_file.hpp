#pragma once

#include "engine/base/error.hpp"

#include <cstdint>
#include <filesystem>
#include <string>

namespace rollcast {

/// Tells one state of a file from another without reading it.
struct file_stamp {
  std::uint64_t device = 0;
  std::uint64_t inode = 0; ///< 0: there is no such file.
  std::uint64_t bytes = 0;
  std::int64_t changed_ns = 0; ///< Contents, owner or mode, by the file system's clock.
  friend bool operator==(const file_stamp&, const file_stamp&) = default;
};
file_stamp stamp_of(const std::filesystem::path& path);

/// The largest key, list or certificate file that is read.
inline constexpr std::size_t security_file_bytes_max = std::size_t{4} << 20;

/// Reads a file of at most `security_file_bytes_max`. `what` begins the line of a failure: "allow
/// list". Fails with `io_failed` or `bad_config` (too large).
result<std::string> read_text(const std::filesystem::path& path, const std::string& what);

/// As `read_text`, of a file that says whom to trust. Fails with `bad_config` unless it belongs to
/// this user or to root and nobody else may write it, whoever may read it.
result<std::string> read_trusted(const std::filesystem::path& path, const std::string& what);

/// As `read_text`, of a file with a secret. Fails with `bad_config` unless it belongs to this user
/// or to root and nobody else may read or write it; the line names both modes and the command. Only
/// a process that is not root's may read what root lends to a group of its own (0440, as Kubernetes
/// mounts secrets). Mode and contents are those of one open file, so it cannot be exchanged in
/// between.
result<std::string> read_secret(const std::filesystem::path& path, const std::string& what);

/// Writes a new file of the given mode, whatever the umask. Fails with `io_failed`, also when the
/// file is there already: a key that is in use must not be lost.
result<void> write_new(const std::filesystem::path& path, const std::string& text, unsigned mode);

} // namespace rollcast
