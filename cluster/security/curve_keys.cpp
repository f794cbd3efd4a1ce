#include "cluster/security/curve_keys.hpp"

#include "cluster/security/private_file.hpp"
#include "engine/base/check.hpp"

#include <zmq.h>

#include <array>

namespace rollcast {
namespace {

constexpr std::size_t key_characters = 40;
constexpr std::string_view z85 =
  "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// Every line that is neither empty nor a comment. A key of Z85 may begin with # too: then it has
/// no space in it and the length of a key.
std::string the_line(std::string_view text, std::size_t& lines) {
  std::string found;
  lines = 0;
  while (!text.empty()) {
    const auto end = text.find('\n');
    auto line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    while (!line.empty() && (line.back() == '\r' || line.back() == ' '))
      line.remove_suffix(1);
    if (line.empty() || (line.front() == '#' && !is_key(line)))
      continue;
    found = line;
    ++lines;
  }
  return found;
}

result<std::string> key_of(const std::string& text, const std::filesystem::path& path) {
  std::size_t lines = 0;
  auto key = the_line(text, lines);
  if (lines != 1)
    return fail(errc::bad_config, "key file " + path.string() + " has " + std::to_string(lines)
                                    + " lines that are no comment, wanted is 1 with a key of "
                                      "40 characters: make one with `rollcast keys new`");
  if (!is_key(key))
    return fail(errc::bad_config, "key file " + path.string() + ": its line has "
                                    + std::to_string(key.size())
                                    + " characters or some outside Z85, a key has 40 of Z85: make "
                                      "one with `rollcast keys new`");
  return key;
}

} // namespace

bool is_key(std::string_view text) noexcept {
  return text.size() == key_characters && text.find_first_not_of(z85) == std::string_view::npos;
}

key_pair make_keys() {
  std::array<char, key_characters + 1> open{};
  std::array<char, key_characters + 1> secret{};
  ROLLCAST_CHECK(::zmq_curve_keypair(open.data(), secret.data()) == 0); // libzmq has CURVE
  return {open.data(), secret.data()};
}

result<void> write_keys(const std::filesystem::path& prefix, const key_pair& keys) {
  const auto name = prefix.string();
  const auto secret = write_new(
    name + ".secret",
    "# Rollcast CURVE secret key. Keep it private; the public one is in the .public file.\n"
      + keys.secret_key + "\n",
    0600);
  if (!secret)
    return secret;
  return write_new(name + ".public", "# Rollcast CURVE public key.\n" + keys.public_key + "\n",
                   0644);
}

result<key_pair> load_keys(const std::filesystem::path& secret_file) {
  const auto text = read_secret(secret_file, "key file");
  if (!text)
    return fail(text);
  const auto secret = key_of(*text, secret_file);
  if (!secret)
    return fail(secret);
  std::array<char, key_characters + 1> open{};
  if (::zmq_curve_public(open.data(), secret->c_str()) != 0)
    return fail(errc::bad_config, "key file " + secret_file.string()
                                    + " holds no CURVE key: make "
                                      "one with `rollcast keys new`");
  return key_pair{open.data(), *secret};
}

result<std::string> load_public_key(const std::string& key_or_file) {
  if (is_key(key_or_file))
    return key_or_file;
  const auto text = read_text(key_or_file, "public key");
  if (!text)
    return fail(text);
  return key_of(*text, key_or_file);
}

} // namespace rollcast
