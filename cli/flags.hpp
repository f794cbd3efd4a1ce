#pragma once

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

/// How an option is declared: with its environment variable, and numbers that fit.
namespace rollcast::cli {

/// --lost-after-ms is ROLLCAST_LOST_AFTER_MS.
inline std::string variable_of(const std::string& flag) {
  std::string variable = "ROLLCAST_" + flag.substr(2);
  std::transform(variable.begin(), variable.end(), variable.begin(), [](unsigned char c) {
    return c == '-' ? '_' : static_cast<char>(std::toupper(c));
  });
  return variable;
}

/// Accepts what fits a T: the library takes -1 for the largest number there is.
template <class T>
CLI::Validator whole_number() {
  const auto most = std::numeric_limits<T>::max();
  return {[most](std::string& text) {
            T value = 0;
            const auto end = text.data() + text.size();
            const auto [stop, failed] = std::from_chars(text.data(), end, value);
            return failed == std::errc{} && stop == end
                     ? std::string{}
                     : "'" + text + "' is no whole number from 0 to " + std::to_string(most);
          },
          "UINT"};
}

template <class T>
struct bare {
  using type = T;
};
template <class T>
struct bare<std::optional<T>> {
  using type = T;
};

/// Adds an option with its environment variable.
template <class T>
CLI::Option* add(CLI::App& app, const std::string& flag, T& value, const std::string& help) {
  auto* option = app.add_option(flag, value, help)->envname(variable_of(flag));
  if constexpr (std::is_unsigned_v<typename bare<T>::type>)
    option->check(whole_number<typename bare<T>::type>());
  return option->capture_default_str();
}

/// Adds a flag with its environment variable, which says true or false.
inline CLI::Option* add_flag(CLI::App& app, const std::string& flag, bool& value,
                             const std::string& help) {
  return app.add_flag(flag, value, help)->envname(variable_of(flag));
}

/// Only shown: `with_config_file` has read it before the options are parsed.
inline void add_config(CLI::App& app) {
  app.add_option("--config", "TOML file with any of these options")->envname("ROLLCAST_CONFIG");
}

/// What a parsed command line has chosen to do; returns the exit code.
using command = std::function<int()>;

inline const CLI::Range at_least_1{1u, std::numeric_limits<std::uint32_t>::max()};

} // namespace rollcast::cli
