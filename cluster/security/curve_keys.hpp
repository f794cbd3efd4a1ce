#pragma once

#include "engine/base/error.hpp"

#include <filesystem>
#include <string>
#include <string_view>

namespace rollcast {

/// A CURVE key pair. Both in Z85, 40 characters each; the secret one never goes into a log line.
struct key_pair {
  std::string public_key;
  std::string secret_key;
  friend bool operator==(const key_pair&, const key_pair&) = default;
};

/// Draws a new pair.
key_pair make_keys();

/// Writes `prefix`.secret (mode 0600) and `prefix`.public. Fails with `io_failed`, also when one of
/// them is there already.
result<void> write_keys(const std::filesystem::path& prefix, const key_pair& keys);

/// Reads a secret key file as `write_keys` makes it: one line with the key, lines that start with #
/// are comments. The public key follows from it. Fails as `read_secret` does, and with `bad_config`
/// when there is no such key in it; what the file holds is never part of the line.
result<key_pair> load_keys(const std::filesystem::path& secret_file);

/// Reads a public key: the 40 characters themselves, or the name of a file that has them.
result<std::string> load_public_key(const std::string& key_or_file);

/// True for 40 characters of Z85.
bool is_key(std::string_view text) noexcept;

} // namespace rollcast
