#include "cli/json_lines.hpp"

#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

namespace rollcast::cli {

result<void>
for_each_json_line(const std::filesystem::path& path,
                   const std::function<result<void>(const nlohmann::json& line)>& take) {
  std::ifstream in{path};
  std::error_code ignored;
  if (!in || std::filesystem::is_directory(path, ignored))
    return fail(errc::io_failed, "cannot read " + path.string() + ": "
                                   + (in ? "it is a directory" : std::strerror(errno)));
  std::string line;
  for (std::size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos)
      continue;
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    try {
      const auto value = nlohmann::json::parse(line);
      if (!value.is_object())
        return fail(errc::bad_prompt, where + "not a JSON object");
      if (auto ok = take(value); !ok)
        return fail(ok.error().code, where + ok.error().detail);
    } catch (const nlohmann::json::exception& e) {
      return fail(errc::bad_prompt, where + e.what());
    }
  }
  if (in.bad())
    return fail(errc::io_failed, "cannot read all of " + path.string());
  return {};
}

} // namespace rollcast::cli
