#pragma once

#include "cluster/security/private_file.hpp"
#include "engine/base/error.hpp"

#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace rollcast {

/// Files of one end of a mutual TLS connection, PEM. All three or none.
struct tls_options {
  std::filesystem::path certificate; ///< Ours, and what leads from it to the CA.
  std::filesystem::path key;         ///< Not encrypted; only its owner may read it.
  std::filesystem::path ca;          ///< Whoever it has signed is let in.
  bool any() const noexcept { return !certificate.empty() || !key.empty() || !ca.empty(); }
};

/// Copies of the files in memory, under names that a TLS library can open, and only ever such as
/// belong together: a library that finds half a file at a handshake ends the process. `refresh`
/// takes renewed files over for the connections that come then.
class tls_files {
public:
  /// Reads and checks. Fails with `bad_config` (a name is missing, a loose mode, no PEM, a key of
  /// another certificate, a certificate that has expired or that the CA did not sign) or
  /// `io_failed`.
  static result<std::unique_ptr<tls_files>> open(tls_options options);
  ~tls_files();
  tls_files(const tls_files&) = delete;
  tls_files& operator=(const tls_files&) = delete;

  /// Names to open, good as long as this lives.
  const std::string& certificate() const noexcept { return names_[0]; }
  const std::string& key() const noexcept { return names_[1]; }
  const std::string& ca() const noexcept { return names_[2]; }

  /// True if a file is another than was read last, or could not be read.
  bool changed() const;
  /// Takes the files over as they are now. Call it where no handshake begins meanwhile. Fails as
  /// `open` does; then those read before stay.
  result<void> refresh();
  /// As `refresh`. @returns what to say: that they are in use, or what is wrong, once; "" for
  /// nothing new.
  struct news {
    bool good = false;
    std::string line;
  };
  news renew();

private:
  explicit tls_files(tls_options options) : options_(std::move(options)) {}
  std::array<file_stamp, 3> stamps() const;
  result<void> take_over();

  const tls_options options_;
  std::optional<std::array<file_stamp, 3>> stamps_; ///< None: to be read again.
  std::string wrong_;                               ///< Since they were read well.
  std::array<int, 3> descriptors_{-1, -1, -1};
  std::array<std::string, 3> names_;
};

} // namespace rollcast
