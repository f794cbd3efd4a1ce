#pragma once

#include "cli/sizing.hpp"

#include <filesystem>
#include <string>

namespace rollcast::cli {

struct plan_options {
  std::filesystem::path model;  ///< A checkpoint, or a directory with its config.json alone.
  std::string gpu = "cpu";      ///< A name of `known_devices`.
  std::uint32_t memory_gib = 0; ///< 0: the device's.
  std::string numerics{default_profile};
  bool no_updates = false; ///< The weights never change, so there is one copy of them.
  bool json = false;
  sizing_question asked;
};

/// Prints what a model and a batch need of devices, and which ports a cluster has. Speeds are told
/// only from one that is given.
int run_plan(const plan_options& options);

} // namespace rollcast::cli
