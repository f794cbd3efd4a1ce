#include "engine/model/json_reader.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <set>
#include <system_error>

namespace rollcast {

namespace {

/// The text around a parse error, because a config written on one line has no useful line number.
std::string excerpt(std::string_view text, std::size_t at) {
  constexpr std::size_t before = 40;
  constexpr std::size_t after = 12;
  at = std::min(at, text.size());
  const std::size_t begin = at > before ? at - before : 0;
  return printable(text.substr(begin, at - begin + after));
}

} // namespace

std::string printable(std::string_view text, std::size_t length_max) {
  std::string out(text.substr(0, length_max));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      c = '?';
  }
  if (text.size() > length_max)
    out += "...";
  return out;
}

result<nlohmann::json> parse_json_object(std::string_view text, std::string_view where, errc code) {
  std::set<std::string> keys;
  std::string twice;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (depth == 1 && event == nlohmann::json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.insert(key).second)
        twice = key;
    }
    return true;
  };
  try {
    auto json = nlohmann::json::parse(text, watch);
    if (!json.is_object())
      return fail(code, std::string(where) + ": holds a JSON " + json.type_name()
                          + ", an object is needed");
    if (!twice.empty())
      return fail(code, std::string(where) + ": key \"" + printable(twice) + "\" appears twice");
    return json;
  } catch (const nlohmann::json::parse_error& e) {
    return fail(code, std::string(where) + ": not valid JSON at byte " + std::to_string(e.byte)
                        + ", near '" + excerpt(text, e.byte) + "'");
  } catch (const std::exception& e) { // A number out of double's range, or no memory.
    return fail(code, std::string(where) + ": not usable JSON: " + printable(e.what(), 160));
  }
}

result<nlohmann::json> read_json_object(const std::filesystem::path& file, std::size_t bytes_max,
                                        errc code) {
  std::error_code failed;
  const auto bytes = std::filesystem::file_size(file, failed);
  if (failed)
    return fail(errc::io_failed, file.string() + ": cannot read: " + failed.message());
  if (bytes > bytes_max)
    return fail(code, file.string() + ": " + std::to_string(bytes) + " bytes, at most "
                        + std::to_string(bytes_max) + " are accepted");
  std::ifstream in(file, std::ios::binary);
  std::string text(static_cast<std::size_t>(bytes), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in)
    return fail(errc::io_failed, file.string() + ": cannot read: " + std::strerror(errno));
  return parse_json_object(text, file.string(), code);
}

} // namespace rollcast
