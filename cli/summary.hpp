#pragma once

#include "cluster/wire/messages.hpp"

#include <filesystem>
#include <string>

namespace rollcast::cli {

/// The text of summary.json.
std::string to_json(const wire::batch_summary& summary);

/// Prints what a person wants to know of a batch on stdout.
void print_table(const wire::batch_summary& summary, const std::filesystem::path& responses);

} // namespace rollcast::cli
