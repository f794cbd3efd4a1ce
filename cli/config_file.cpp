#include "cli/config_file.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>

namespace rollcast::cli {

const CLI::App* find_command(const CLI::App& app, const std::string& name) {
  const auto found = app.get_subcommands([&](const CLI::App* a) { return a->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

namespace {

/// The value of `--config FILE` or `--config=FILE`, else that of the environment.
std::optional<std::string> config_path(const std::vector<std::string>& arguments) {
  const std::string flag = "--config";
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == flag && i + 1 < arguments.size())
      return arguments[i + 1];
    if (arguments[i].starts_with(flag + "="))
      return arguments[i].substr(flag.size() + 1);
  }
  const char* variable = std::getenv("ROLLCAST_CONFIG");
  return variable != nullptr ? std::optional<std::string>{variable} : std::nullopt;
}

bool is_given(const std::vector<std::string>& arguments, const std::string& flag) {
  return std::any_of(arguments.begin(), arguments.end(), [&](const std::string& argument) {
    return argument == flag || argument.starts_with(flag + "=");
  });
}

/// The subcommand that the arguments choose; `root` itself if they choose none.
const CLI::App* chosen_of(const CLI::App& root, const std::vector<std::string>& arguments) {
  const CLI::App* app = &root;
  for (const auto& argument : arguments) {
    const auto* next = find_command(*app, argument);
    if (next == nullptr)
      break;
    app = next;
  }
  return app;
}

} // namespace

result<std::vector<std::string>> with_config_file(const CLI::App& root,
                                                  std::vector<std::string> arguments) {
  const auto path = config_path(arguments);
  const auto* app = chosen_of(root, arguments);
  if (!path || app == &root)
    return arguments;
  std::ifstream file{*path};
  if (!file)
    return fail(errc::bad_config, "config file " + *path + ": cannot read it");
  const auto given = arguments;
  for (const auto& item : CLI::ConfigTOML{}.from_config(file)) {
    if (item.name == "++" || item.name == "--")
      continue; // the edges of a section
    if (!item.parents.empty() && item.parents.front() != app->get_name()) {
      if (find_command(root, item.parents.front()) == nullptr)
        return fail(errc::bad_config, "config file " + *path + ": section [" + item.parents.front()
                                        + "] is no command of rollcast");
      continue;
    }
    const auto flag = "--" + item.name;
    if (item.parents.size() > 1 || app->get_option_no_throw(flag) == nullptr)
      return fail(errc::bad_config, "config file " + *path + ": '" + item.fullname()
                                      + "' is no option of rollcast " + app->get_name());
    if (is_given(given, flag))
      continue;
    std::string value;
    for (const auto& input : item.inputs)
      value += (value.empty() ? "" : ",") + input;
    arguments.push_back(flag + "=" + value);
  }
  return arguments;
}

} // namespace rollcast::cli
