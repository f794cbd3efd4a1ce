#include "cluster/sim/trace.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <limits>
#include <ostream>
#include <tuple>

namespace rollcast::sim {

namespace {

constexpr std::string_view header = "group,index,prompt_tokens,output_tokens";
constexpr std::array<std::string_view, 4> fields{"group", "index", "prompt_tokens",
                                                 "output_tokens"};
constexpr std::uint64_t tokens_top = (std::uint64_t{1} << 30) - 1;

result<std::array<std::uint64_t, 4>> parse(std::string_view line, const std::string& where) {
  std::array<std::uint64_t, 4> out{};
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const auto comma = i + 1 < fields.size() ? line.find(',') : line.size();
    if (comma == std::string_view::npos)
      return fail(errc::bad_config, where + ": " + std::to_string(i + 1) + " fields, a line has 4");
    const auto text = line.substr(0, comma);
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out[i]);
    if (code != std::errc{} || end != text.data() + text.size())
      return fail(errc::bad_config, where + ": " + std::string{fields[i]} + " is \""
                                      + std::string{text} + "\", give a whole number");
    line.remove_prefix(std::min(line.size(), comma + 1));
  }
  const auto top = std::numeric_limits<std::uint32_t>::max();
  if (out[1] > top)
    return fail(errc::bad_config, where + ": index is " + std::to_string(out[1])
                                    + ", the largest is " + std::to_string(top));
  for (const std::size_t i : {2u, 3u})
    if (out[i] == 0 || out[i] > tokens_top)
      return fail(errc::bad_config, where + ": " + std::string{fields[i]} + " is "
                                      + std::to_string(out[i]) + ", give 1 to "
                                      + std::to_string(tokens_top));
  return out;
}

auto place_of(const traced_response& r) {
  return std::tuple{r.group, r.index};
}

} // namespace

result<workload> read_trace(const std::filesystem::path& path, std::uint32_t tokens_max) {
  std::ifstream file{path};
  if (!file)
    return fail(errc::io_failed, "cannot read trace " + path.string());
  workload out{path.filename().string(), tokens_max, {}};
  std::string line;
  for (std::size_t number = 1; std::getline(file, line); ++number) {
    const auto where = path.string() + ":" + std::to_string(number);
    if (!line.empty() && line.back() == '\r')
      line.pop_back();
    if (number == 1) {
      if (line != header)
        return fail(errc::bad_config, where + ": the first line must be " + std::string{header});
      continue;
    }
    if (line.empty())
      continue;
    const auto row = parse(line, where);
    if (!row)
      return fail(row);
    const auto& [group, index, prompt, output] = *row;
    if (tokens_max > 0 && output > tokens_max)
      return fail(errc::bad_config, where + ": output_tokens is " + std::to_string(output)
                                      + ", the limit given is " + std::to_string(tokens_max));
    out.responses.push_back({group, static_cast<std::uint32_t>(index),
                             static_cast<std::uint32_t>(prompt),
                             static_cast<std::uint32_t>(output)});
    out.tokens_max = std::max(out.tokens_max, out.responses.back().output_tokens);
  }
  if (out.responses.empty())
    return fail(errc::bad_config, path.string() + ": no responses");
  const auto before = [](const auto& a, const auto& b) { return place_of(a) < place_of(b); };
  const auto same = [](const auto& a, const auto& b) { return place_of(a) == place_of(b); };
  std::sort(out.responses.begin(), out.responses.end(), before);
  const auto twice = std::adjacent_find(out.responses.begin(), out.responses.end(), same);
  if (twice != out.responses.end())
    return fail(errc::bad_config, path.string() + ": group " + std::to_string(twice->group)
                                    + " index " + std::to_string(twice->index) + " is there twice");
  return out;
}

void write_trace(std::ostream& out, const std::vector<traced_response>& responses) {
  out << header << '\n';
  for (const auto& r : responses)
    out << r.group << ',' << r.index << ',' << r.prompt_tokens << ',' << r.output_tokens << '\n';
}

} // namespace rollcast::sim
