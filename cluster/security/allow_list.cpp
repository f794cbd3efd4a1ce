#include "cluster/security/allow_list.hpp"

#include "cluster/security/curve_keys.hpp"

#include <algorithm>
#include <charconv>
#include <vector>

namespace rollcast {
namespace {

constexpr std::size_t name_bytes_max = 64;

std::vector<std::string_view> words_of(std::string_view line) {
  constexpr std::string_view blanks = " \t\r";
  std::vector<std::string_view> words;
  for (;;) {
    const auto begin = line.find_first_not_of(blanks);
    if (begin == std::string_view::npos)
      return words;
    const auto end = std::min(line.find_first_of(blanks, begin), line.size());
    words.push_back(line.substr(begin, end - begin));
    line.remove_prefix(end);
  }
}

/// Names get into log lines and metrics of others, so they are plain.
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= name_bytes_max && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-'
           || c == '_' || c == '.';
  });
}

/// Takes "operator" or "batches=8". @returns what is wrong with it, "" for nothing.
std::string take_word(std::string_view word, client_entry& entry) {
  if (word == "operator") {
    entry.operates = true;
    return {};
  }
  auto& limits = entry.limits;
  const auto equals = word.find('=');
  const auto key = word.substr(0, equals);
  std::uint32_t* target = key == "batches"       ? &limits.batches
                          : key == "groups"      ? &limits.groups
                          : key == "kept"        ? &limits.kept
                          : key == "responses"   ? &limits.responses
                          : key == "requests"    ? &limits.requests
                          : key == "tokens"      ? &limits.tokens
                          : key == "connections" ? &limits.connections
                                                 : nullptr;
  if (target == nullptr || equals == std::string_view::npos)
    return "'" + std::string{word.substr(0, 32)} + "' is neither 'operator' nor a limit";
  const auto value = word.substr(equals + 1);
  const auto [stop, failed] = std::from_chars(value.data(), value.data() + value.size(), *target);
  if (failed != std::errc{} || stop != value.data() + value.size() || *target == 0)
    return "'" + std::string{word.substr(0, 32)} + "' has no whole number of at least 1";
  return {};
}

} // namespace

result<allow_list> allow_list::parse(std::string_view text, const std::string& where,
                                     const client_limits& otherwise) {
  allow_list list;
  for (std::size_t number = 1; !text.empty(); ++number) {
    const auto end = text.find('\n');
    const auto words = words_of(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (words.empty() || words[0].front() == '#')
      continue;
    const auto refuse = [&](const std::string& why) {
      return fail(errc::bad_config,
                  "allow list " + where + ", line " + std::to_string(number) + ": " + why
                    + "; a line is: name public-key, then any of operator "
                      "batches=N groups=N kept=N responses=N requests=N tokens=N connections=N");
    };
    if (!is_name(words[0]))
      return refuse("the name is not 1 to 64 letters, digits, '-', '_' or '.'");
    if (words[0] == "cluster")
      return refuse("the name 'cluster' is that of the scheduler's own key");
    if (words.size() < 2 || !is_key(words[1]))
      return refuse("the second word is no public key of 40 characters of Z85");
    client_entry entry{std::string{words[0]}, otherwise};
    for (std::size_t at = 2; at < words.size(); ++at)
      if (const auto wrong = take_word(words[at], entry); !wrong.empty())
        return refuse(wrong);
    if (!list.by_key_.emplace(std::string{words[1]}, std::move(entry)).second)
      return refuse("the key of this line is in the list already");
  }
  return list;
}

const client_entry* allow_list::find(std::string_view public_key) const {
  const auto it = by_key_.find(public_key);
  return it == by_key_.end() ? nullptr : &it->second;
}

} // namespace rollcast
