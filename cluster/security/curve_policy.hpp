#pragma once

#include "cluster/security/allow_list.hpp"
#include "cluster/security/curve_keys.hpp"
#include "cluster/security/private_file.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace rollcast {

struct curve_policy_options {
  std::filesystem::path secret;  ///< Secret key file of this end.
  std::filesystem::path clients; ///< Allow list; "": only who holds the secret itself comes in.
  client_limits limits;          ///< Of clients whose line says nothing.
  /// How long a key that was replaced in the file still opens the door.
  std::chrono::milliseconds grace{std::chrono::hours{1}};
};

/// The keys of one end and who may talk to it, as files say now: `refresh` looks at them again, so
/// keys and lists change without a restart. A file that is wrong changes nothing and is said once
/// in `complaint`; what was read last stays. One that cannot be read now is tried again. Every
/// member may be called from any thread.
class curve_policy {
public:
  using clock = std::chrono::steady_clock;

  /// Reads the files. Fails as `load_keys` and `allow_list::parse` do.
  static result<std::shared_ptr<curve_policy>> open(curve_policy_options options);

  /// Looks at the files again if they have changed; ends the grace of a replaced key.
  void refresh(clock::time_point now);

  key_pair current() const;
  /// Every pair that opens the door, the current one first.
  std::vector<key_pair> valid() const;
  /// Ascends whenever `valid()` changes.
  std::uint64_t keys_version() const;
  /// Ascends whenever `admit` may answer otherwise than before.
  std::uint64_t list_version() const;

  /// Who has this public key. Who holds the secret key of this end is let in as "cluster", with
  /// limits that nobody reaches. None: it must stay outside.
  std::optional<client_entry> admit(std::string_view public_key) const;

  /// What the last `refresh` found wrong, told once; "" for nothing.
  std::string complaint();

private:
  explicit curve_policy(curve_policy_options options) : options_(std::move(options)) {}
  result<void> read_keys();
  result<void> read_list();
  void take_again(result<void> (curve_policy::*read)(), std::optional<file_stamp>& stamp,
                  std::string& wrong, const char* stays);

  const curve_policy_options options_;
  mutable std::mutex mutex_; ///< Guards everything below.
  /// None: to be read again, whatever it looks like.
  std::optional<file_stamp> secret_stamp_;
  std::optional<file_stamp> clients_stamp_;
  key_pair current_;
  struct replaced {
    key_pair keys;
    clock::time_point until;
  };
  std::vector<replaced> replaced_; ///< The latest first.
  allow_list list_;
  std::uint64_t keys_version_ = 1;
  std::uint64_t list_version_ = 1;
  std::string secret_wrong_; ///< What is wrong with the file since it was read well; "": nothing.
  std::string clients_wrong_;
  std::string complaint_;
};

} // namespace rollcast
