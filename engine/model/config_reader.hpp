#pragma once

#include "engine/base/error.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace rollcast {

/// Typed access to one JSON object of a config file. The first failure is kept and every later
/// read returns a harmless value, so that a reader needs one check at its end.
class config_reader {
public:
  /// @param where names the object in errors: the file, then the key of a nested object.
  config_reader(const nlohmann::json& object, std::string where);

  /// True if the key is there and not null: transformers writes null for "not set".
  bool has(std::string_view key) const;

  /// A required whole number in [1, most].
  std::size_t count(std::string_view key, std::size_t most);
  /// A whole number in [least, most]; `otherwise` if absent.
  std::size_t count_or(std::string_view key, std::size_t otherwise, std::size_t least,
                       std::size_t most);
  /// A required finite number in [least, most].
  double real(std::string_view key, double least, double most);
  /// A required true or false.
  bool flag(std::string_view key);
  bool flag_or(std::string_view key, bool otherwise);
  std::string text_or(std::string_view key, std::string otherwise);

  /// Refuses this key for what its value is: "FILE: key = VALUE; REASON".
  void refuse(std::string_view key, std::string_view reason);
  /// Refuses for a reason that names no single key.
  void refuse(std::string_view reason);
  /// Takes over the failure of a nested object's reader.
  void refuse_as(const error& nested);

  const nlohmann::json* find(std::string_view key) const;
  const std::string& where() const noexcept { return where_; }
  bool ok() const noexcept { return !failure_.has_value(); }
  /// @pre !ok()
  const error& failure() const { return *failure_; }

private:
  const nlohmann::json* required(std::string_view key, std::string_view what);

  const nlohmann::json* object_;
  std::string where_;
  std::optional<error> failure_;
};

} // namespace rollcast
