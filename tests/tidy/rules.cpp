#include "tests/tidy/rules.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <regex>
#include <set>

namespace rollcast::tidy {

namespace {

/// Who may include whom. The whole architecture, in nine lines.
const std::map<std::string, std::set<std::string>> may_include{
  {"kernels", {"kernels"}},
  {"engine/base", {"engine/base"}},
  {"engine", {"engine/base", "engine", "kernels"}},
  {"cluster/policy", {"cluster/policy", "engine/base"}},
  {"cluster", {"cluster/policy", "cluster", "engine/base", "engine"}},
  {"actors", {"actors", "cluster/policy", "cluster", "engine/base", "engine"}},
  {"cli", {"cli", "actors", "cluster/policy", "cluster", "engine/base", "engine", "kernels"}},
  {"clients/kernels", {"clients/kernels", "engine/base", "engine", "kernels"}},
  {"tests",
   {"tests", "cli", "actors", "cluster/policy", "cluster", "engine/base", "engine", "kernels"}},
};

/// A word that is not for us.
struct ban {
  std::regex word;
  std::string instead;
  std::vector<std::string> allowed_in; ///< Prefixes of paths.
};

const std::vector<ban> bans_in_code{
  {std::regex{R"(\bstd::(ranges::)?(random_)?shuffle\b)"},
   "std::shuffle is banned: its order differs between standard libraries; write the swaps with "
   "prng",
   {}},
  {std::regex{R"(\bstd::\w+_distribution\b)"},
   "std distributions are banned: their numbers differ between standard libraries; use prng::below",
   {}},
  {std::regex{R"(\bstd::(random_device|s?rand|default_random_engine)\b)"},
   "randomness outside prng is banned: a run must be replayed from a printed seed",
   {}},
  {std::regex{R"(\bcaf::infinite\b)"},
   "caf::infinite is banned: a request to a dead peer would never end; use a timeout of the "
   "options",
   {}},
  {std::regex{R"(\bthrow\b)"}, "throw is banned: return a result<T>", {"tests/"}},
};

const std::vector<ban> bans_in_includes{
  {std::regex{R"(^\s*#\s*include\s*<caf/(io/)?all\.hpp>)"},
   "<caf/all.hpp> costs seconds a file: only actors/ and their tests include it",
   {"actors/", "tests/unit/actors/", "tests/e2e/", "tests/sim/protocol_sim"}},
  {std::regex{R"(^\s*#\s*include\s*[<"][^>"]*\.pb\.h[>"])"},
   "generated Protobuf headers are for cluster/wire/ only; use cluster/wire/messages.hpp",
   {"cluster/wire/", "tests/unit/wire/"}},
};

const ban fast_math{std::regex{"-ffast-math|-Ofast|-funsafe-math|-fassociative-math"},
                    "fast math is banned: it changes the bits that the numerics profile promises",
                    {}};

// Spelled in two pieces, so that this file does not find itself.
const ban open_end{std::regex{"\\b(TO"
                              "DO|FIX"
                              "ME)\\b(?!\\(#[0-9]+\\))"},
                   "an open end needs its issue, spelled as the word followed by (#number)",
                   {}};

constexpr std::size_t columns_max = 100;
constexpr std::size_t lines_max = 600;
constexpr std::size_t function_lines_max = 70;

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const auto end = text.find('\n');
    lines.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos)
      break;
    text.remove_prefix(end + 1);
  }
  return lines;
}

bool ends_with_any(const std::string& path, std::initializer_list<std::string_view> ends) {
  return std::ranges::any_of(ends, [&](auto end) { return path.ends_with(end); });
}

bool is_cpp(const std::string& path) {
  return ends_with_any(path, {".hpp", ".cpp", ".cuh", ".cu"});
}

bool is_code(const std::string& path) {
  return is_cpp(path) || ends_with_any(path, {".py", ".sh"});
}

bool is_build_file(const std::string& path) {
  return ends_with_any(path, {"CMakeLists.txt", ".cmake", "CMakePresets.json", "Makefile", ".sh"});
}

std::string at(const std::string& path, std::size_t line) {
  return path + ":" + std::to_string(line + 1) + ": ";
}

/// Returns the longest layer that `path` lies in, or "".
std::string layer_of(const std::string& path) {
  std::string best;
  for (const auto& [layer, unused] : may_include)
    if (path.starts_with(layer + "/") && layer.size() > best.size())
      best = layer;
  return best;
}

bool allows(const ban& b, const std::string& path) {
  return std::ranges::any_of(b.allowed_in, [&](auto& prefix) { return path.starts_with(prefix); });
}

void search(const ban& b, const std::string& path, const std::vector<std::string>& lines,
            findings& found) {
  if (allows(b, path))
    return;
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (std::regex_search(lines[i], b.word))
      found.push_back(at(path, i) + b.instead);
}

/// Counts code points: what a terminal shows as columns for all the text we write.
std::size_t columns(std::string_view line) {
  return static_cast<std::size_t>(
    std::ranges::count_if(line, [](char c) { return (c & 0xc0) != 0x80; }));
}

/// Functions at namespace scope, as clang-format leaves them: opened by a line that starts at
/// column 0 and ends in a brace, closed by a brace alone at column 0.
void check_functions(const std::string& path, const std::vector<std::string>& lines,
                     findings& found) {
  static const std::regex no_function{
    R"(^(namespace|class|struct|enum|union|extern|template <[^>]*>$|#|\}|//).*)"};
  std::size_t start = 0;
  bool open = false;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto& line = lines[i];
    if (line == "}" && open) {
      if (const auto n = i - start + 1; n > function_lines_max)
        found.push_back(at(path, start) + "this function has " + std::to_string(n)
                        + " lines, at most " + std::to_string(function_lines_max)
                        + "; split it by what it does");
      open = false;
    } else if (!line.empty() && line[0] != ' ' && line[0] != '}') {
      start = i;
      open = !std::regex_match(line, no_function);
    }
  }
}

/// Where `code_only` is inside a source.
class code_scanner {
public:
  explicit code_scanner(std::string_view source) : in_(source), out_(source) {}

  std::string scan() {
    while (i_ < in_.size()) {
      if (starts("//"))
        blank_until("\n", 0);
      else if (starts("/*"))
        blank_until("*/", 2);
      else if (starts("R\"") && !after_word())
        blank_raw_string();
      else if (in_[i_] == '"' || (in_[i_] == '\'' && !after_word()))
        blank_quoted(in_[i_]);
      else
        ++i_;
    }
    return std::move(out_);
  }

private:
  bool starts(std::string_view what) const { return in_.substr(i_).starts_with(what); }

  /// True after a letter or digit: 1'000 has no character literal, and FOR"x" is no raw string.
  bool after_word() const {
    return i_ > 0 && (std::isalnum(static_cast<unsigned char>(in_[i_ - 1])) || in_[i_ - 1] == '_');
  }

  void blank_to(std::size_t end) {
    for (end = std::min(end, in_.size()); i_ < end; ++i_)
      if (in_[i_] != '\n')
        out_[i_] = ' ';
  }

  void blank_until(std::string_view end, std::size_t and_then) {
    const auto found = in_.find(end, i_ + 2);
    blank_to(found == std::string_view::npos ? in_.size() : found + and_then);
  }

  void blank_raw_string() {
    const auto open = in_.find('(', i_);
    if (open == std::string_view::npos)
      return blank_to(in_.size());
    const auto end = ")" + std::string{in_.substr(i_ + 2, open - i_ - 2)} + "\"";
    blank_until(end, end.size());
  }

  void blank_quoted(char quote) {
    auto end = i_ + 1;
    while (end < in_.size() && in_[end] != quote && in_[end] != '\n')
      end += in_[end] == '\\' ? 2u : 1u;
    blank_to(end + 1);
  }

  std::string_view in_;
  std::string out_;
  std::size_t i_ = 0;
};

} // namespace

std::string code_only(std::string_view source) {
  return code_scanner{source}.scan();
}

findings check_includes(const std::string& path, std::string_view text) {
  findings found;
  if (!is_cpp(path))
    return found;
  static const std::regex include{"^\\s*#\\s*include \"([^\"]+)\""};
  const auto from = layer_of(path);
  const auto lines = lines_of(text);
  std::smatch match;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!std::regex_search(lines[i], match, include) || match[1].str().ends_with(".pb.h"))
      continue;
    const auto to = layer_of(match[1]);
    if (to.empty())
      found.push_back(at(path, i) + "\"" + match[1].str()
                      + "\" does not start at the root; ours are \"folder/...\", others' <...>");
    else if (from.empty())
      found.push_back(at(path, i) + "this folder has no layer; add it to may_include");
    else if (!may_include.at(from).contains(to))
      found.push_back(at(path, i) + from + " may not include " + to);
  }
  for (const auto& b : bans_in_includes)
    search(b, path, lines, found);
  return found;
}

findings check_banned(const std::string& path, std::string_view text) {
  findings found;
  if (is_cpp(path)) {
    const auto code = lines_of(code_only(text));
    for (const auto& b : bans_in_code)
      search(b, path, code, found);
  }
  if (is_build_file(path))
    search(fast_math, path, lines_of(text), found);
  search(open_end, path, lines_of(text), found);
  return found;
}

findings check_sizes(const std::string& path, std::string_view text) {
  findings found;
  if (!is_code(path))
    return found;
  const auto lines = lines_of(text);
  const bool holds_data = path.starts_with("tests/fixtures/"); // Awkward strings do not wrap.
  for (std::size_t i = 0; i < lines.size() && !holds_data; ++i)
    if (const auto n = columns(lines[i]); n > columns_max)
      found.push_back(at(path, i) + std::to_string(n) + " columns, at most 100");
  if (lines.size() > lines_max)
    found.push_back(at(path, lines_max) + std::to_string(lines.size())
                    + " lines, at most 600; one idea a file");
  if (is_cpp(path))
    check_functions(path, lines, found);
  return found;
}

findings check_whitespace(const std::string& path, std::string_view text) {
  findings found;
  const auto lines = lines_of(text);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].find('\r') != std::string::npos)
      found.push_back(at(path, i) + "carriage return; lines end in a newline alone");
    else if (lines[i].ends_with(' ') || lines[i].ends_with('\t'))
      found.push_back(at(path, i) + "trailing space");
    if (is_code(path) && lines[i].find('\t') != std::string::npos)
      found.push_back(at(path, i) + "tab; indent with two spaces (Python: four)");
  }
  if (text.empty() || text.back() != '\n' || text.ends_with("\n\n"))
    found.push_back(at(path, lines.empty() ? 0 : lines.size() - 1)
                    + "a file has text and ends in exactly one newline");
  return found;
}

findings check_opening(const std::string& path, std::string_view text) {
  findings found;
  if (path.ends_with(".hpp") && !path.ends_with("-inl.hpp") && !text.starts_with("#pragma once\n"))
    found.push_back(at(path, 0) + "a header starts with #pragma once");
  if (path.starts_with("tests/") && path.ends_with("_test.cpp")) {
    const auto head = text.substr(0, text.find("\n\n"));
    if (!head.starts_with("// Goal: ") || head.find("\n// Method: ") == std::string_view::npos)
      found.push_back(at(path, 0) + "a test file opens with // Goal: and // Method:");
  }
  return found;
}

bool is_generated(const std::string& path) {
  return ends_with_any(path, {"_pb2.py", "_pb2.pyi"});
}

bool is_checked(const std::string& path) {
  return !is_generated(path)
         && (is_code(path) || is_build_file(path)
             || ends_with_any(path, {".md", ".proto", ".toml", ".yml", ".yaml", ".ci/run"}));
}

findings check_file(const std::string& path, std::string_view text) {
  findings found;
  for (const auto rule :
       {check_includes, check_banned, check_sizes, check_whitespace, check_opening})
    std::ranges::move(rule(path, text), std::back_inserter(found));
  return found;
}

} // namespace rollcast::tidy
