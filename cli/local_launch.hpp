#pragma once

#include "cli/commands.hpp"
#include "cli/local_cluster.hpp"

namespace rollcast::cli {

/// Checks the model in this process first, so that a bad one is one clear line, then starts a
/// scheduler and workers as children and waits until all are registered. Threads that are not given
/// are shared out among the workers.
result<local_cluster> launch(const cluster_options& options, bool restart_workers);

} // namespace rollcast::cli
