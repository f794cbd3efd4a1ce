#pragma once

#include "cluster/security/client_limits.hpp"
#include "engine/base/error.hpp"

#include <map>
#include <string>
#include <string_view>

namespace rollcast {

/// A client that may come in, and how much it may ask for.
struct client_entry {
  std::string name;
  client_limits limits;
  bool operates = false; ///< It may ask about the batches of others, too.
  friend bool operator==(const client_entry&, const client_entry&) = default;
};

/// Who may come in, by public key. A client may have several keys, while it changes from one to
/// the next; its limits are those of the line that has the key.
class allow_list {
public:
  /// Reads lines `name public-key [operator] [LIMIT=N]...`, where LIMIT is a member of
  /// `client_limits`; what a line does not say is as in `otherwise`. Empty lines and lines that
  /// start with # are skipped. `where` names the file in a failure (`bad_config`, with the line's
  /// number).
  static result<allow_list> parse(std::string_view text, const std::string& where,
                                  const client_limits& otherwise);

  /// Null if the key is unknown.
  const client_entry* find(std::string_view public_key) const;
  std::size_t size() const noexcept { return by_key_.size(); }

private:
  std::map<std::string, client_entry, std::less<>> by_key_;
};

} // namespace rollcast
