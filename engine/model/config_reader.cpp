#include "engine/model/config_reader.hpp"

#include "engine/model/json_reader.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <utility>

namespace rollcast {

namespace {

std::string shown(const nlohmann::json& value) {
  return printable(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), 60);
}

std::string range(double least, double most) {
  char text[96];
  std::snprintf(text, sizeof text, "a number from %g to %g", least, most);
  return text;
}

std::string range(std::size_t least, std::size_t most) {
  return "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
}

/// The value as a whole number, if it is one and fits.
std::optional<std::size_t> whole(const nlohmann::json& value) {
  if (value.is_number_unsigned())
    return value.get<std::size_t>();
  if (value.is_number_integer() && value.get<std::int64_t>() >= 0)
    return static_cast<std::size_t>(value.get<std::int64_t>());
  return std::nullopt;
}

} // namespace

config_reader::config_reader(const nlohmann::json& object, std::string where)
  : object_(&object), where_(std::move(where)) {}

const nlohmann::json* config_reader::find(std::string_view key) const {
  const auto at = object_->find(key);
  return at == object_->end() ? nullptr : &*at;
}

bool config_reader::has(std::string_view key) const {
  const auto* value = find(key);
  return value != nullptr && !value->is_null();
}

const nlohmann::json* config_reader::required(std::string_view key, std::string_view what) {
  if (has(key))
    return find(key);
  refuse("key \"" + std::string(key) + "\" is missing; needed: " + std::string(what));
  return nullptr;
}

std::size_t config_reader::count(std::string_view key, std::size_t most) {
  if (required(key, range(std::size_t{1}, most)) == nullptr)
    return 1;
  return count_or(key, 1, 1, most);
}

std::size_t config_reader::count_or(std::string_view key, std::size_t otherwise, std::size_t least,
                                    std::size_t most) {
  if (!has(key))
    return otherwise;
  const auto number = whole(*find(key));
  if (number && *number >= least && *number <= most)
    return *number;
  refuse(key, "accepted: " + range(least, most));
  return otherwise;
}

double config_reader::real(std::string_view key, double least, double most) {
  const auto* value = required(key, range(least, most));
  if (value == nullptr)
    return least;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number >= least && number <= most)
      return number;
  }
  refuse(key, "accepted: " + range(least, most));
  return least;
}

bool config_reader::flag(std::string_view key) {
  return required(key, "true or false") != nullptr && flag_or(key, false);
}

bool config_reader::flag_or(std::string_view key, bool otherwise) {
  if (!has(key))
    return otherwise;
  const auto* value = find(key);
  if (value->is_boolean())
    return value->get<bool>();
  refuse(key, "accepted: true or false");
  return otherwise;
}

std::string config_reader::text_or(std::string_view key, std::string otherwise) {
  if (!has(key))
    return otherwise;
  const auto* value = find(key);
  if (value->is_string())
    return value->get<std::string>();
  refuse(key, "accepted: a string");
  return otherwise;
}

void config_reader::refuse(std::string_view key, std::string_view reason) {
  const auto* value = find(key);
  refuse(std::string(key) + " = " + (value == nullptr ? "(absent)" : shown(*value)) + "; "
         + std::string(reason));
}

void config_reader::refuse(std::string_view reason) {
  if (!failure_)
    failure_ = error{errc::bad_config, where_ + ": " + std::string(reason), {}};
}

void config_reader::refuse_as(const error& nested) {
  if (!failure_)
    failure_ = nested;
}

} // namespace rollcast
