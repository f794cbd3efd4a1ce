#pragma once

#include "engine/base/error.hpp"

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace rollcast::cli {

/// The subcommand of that name, or null.
const CLI::App* find_command(const CLI::App& app, const std::string& name);

/// Puts what the file of `--config` (or ROLLCAST_CONFIG) says behind the arguments of a subcommand.
/// An option that the command line gives wins over the file, and the file over the environment. A
/// file holds options of the chosen subcommand, by their names without dashes, at the top or in a
/// section of its name; sections of other subcommands are passed over, so roles may share a file.
/// Fails with `bad_config` (file, key): unknown options and sections, unreadable files.
/// @param arguments  without the program's name.
result<std::vector<std::string>> with_config_file(const CLI::App& root,
                                                  std::vector<std::string> arguments);

} // namespace rollcast::cli
