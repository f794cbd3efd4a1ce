#pragma once

#include "cli/commands.hpp"

namespace CLI {
class App;
}

/// The options about keys and limits.
namespace rollcast::cli {

/// For every command that talks to a scheduler as a controller does.
void add_controller_keys(CLI::App& app, wire::controller_keys& keys);
void add_data_key(CLI::App& app, std::filesystem::path& key);
void add_cluster_keys(CLI::App& app, cluster_keys& keys);
/// Who may be a controller.
void add_door(CLI::App& app, door_flags& door);

} // namespace rollcast::cli
