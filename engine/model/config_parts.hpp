#pragma once

#include "engine/model/config.hpp"
#include "engine/model/config_reader.hpp"

#include <nlohmann/json.hpp>

#include <filesystem>

namespace rollcast {

/// Reads a directory's config.json. Fails with `io_failed` or `bad_config`.
result<nlohmann::json> read_config_json(const std::filesystem::path& directory);

/// The family that `architectures` names; refuses what is none.
architecture read_family(config_reader& in);

/// Reads all of config.json but `architectures`, as `load_config` says.
model_config read_config(config_reader& in, architecture family);

} // namespace rollcast
