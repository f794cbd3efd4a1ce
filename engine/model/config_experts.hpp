#pragma once

#include "engine/model/config.hpp"
#include "engine/model/config_reader.hpp"

#include <nlohmann/json.hpp>

namespace rollcast {

/// Reads what config.json says of experts, for the families that have them. @pre the family and the
/// number of layers are read.
void read_experts(config_reader& in, model_config& config);

/// Writes what `read_experts` reads; nothing for a dense model.
void write_experts(const model_config& config, nlohmann::ordered_json& out);

} // namespace rollcast
