#pragma once

#include "cli/device.hpp"
#include "cli/flags.hpp"

#include <CLI/CLI.hpp>

/// The options of a model and of the device that runs it, and the command that makes a model up.
namespace rollcast::cli {

/// What `--draft-width` takes.
inline const CLI::Range draft_widths{1u, 16u};

/// @param serves  Adds what only a worker needs: profile, spill space, drafts.
/// @returns `--model`, for whoever requires it.
CLI::Option* add_device(CLI::App& app, device_options& device, bool serves);

/// Adds the command `make-model`.
void add_make_model(CLI::App& root, command& chosen);

} // namespace rollcast::cli
