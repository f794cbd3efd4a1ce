#pragma once

#include "engine/model/config.hpp"
#include "engine/model/config_reader.hpp"

#include <nlohmann/json.hpp>

namespace rollcast {

/// Reads the shape of attention over a latent. @pre the numbers of heads are read.
void read_latent(config_reader& in, model_config& config);

/// Reads the parameters of a yarn scaling as DeepSeek writes them. @param rope  Its object.
void read_yarn(config_reader& rope, model_config& config);

/// True if a checkpoint holds FP8 (e4m3) weights in blocks of 128 x 128, each with a scale.
bool has_fp8_blocks(const config_reader& in);

/// Writes what `read_latent` and `read_yarn` read; nothing for other models.
void write_latent(const model_config& config, nlohmann::ordered_json& out);

} // namespace rollcast
