#pragma once

#include "engine/base/error.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace rollcast {

/// Makes text from a file fit for one line of an error: control characters become `?`, and what is
/// longer than `length_max` bytes is cut and marked with `...`.
std::string printable(std::string_view text, std::size_t length_max = 100);

/// Parses one JSON object. This is where the exceptions of nlohmann-json end.
/// @param where what to call the text in an error, usually the file's path.
/// @returns `code` if it is not JSON (NaN and Infinity are not), is not an object, or if the object
///          names a key twice (JSON leaves open which one counts, so neither may).
result<nlohmann::json> parse_json_object(std::string_view text, std::string_view where, errc code);

/// Reads and parses a file that holds one JSON object.
/// @returns `io_failed` if the file cannot be read, `code` if it is longer than `bytes_max` or as
///          `parse_json_object` says.
result<nlohmann::json> read_json_object(const std::filesystem::path& file, std::size_t bytes_max,
                                        errc code);

} // namespace rollcast
