#pragma once

#include "engine/base/error.hpp"

#include <nlohmann/json_fwd.hpp>

#include <filesystem>
#include <functional>

namespace rollcast::cli {

/// Calls `take` for each line of a JSON Lines file; blank lines are skipped. Fails with `io_failed`
/// if the file cannot be read, or `bad_prompt` with file:line for the first line that is not a JSON
/// object, has a key of the wrong type, or that `take` refuses.
result<void>
for_each_json_line(const std::filesystem::path& path,
                   const std::function<result<void>(const nlohmann::json& line)>& take);

} // namespace rollcast::cli
