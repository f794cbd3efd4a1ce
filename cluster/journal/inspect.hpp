#pragma once

#include "cluster/journal/records.hpp"
#include "engine/base/error.hpp"

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rollcast::journal {

/// One batch, as a person wants to see it.
struct batch_line {
  batch_id id;
  std::string key;
  std::string state; ///< queued, running, ended, failed, collected (its end is acknowledged).
  std::uint64_t responses = 0;
  std::uint64_t finished = 0;
  std::uint64_t tokens = 0; ///< Kept in the journal.
  std::uint64_t acknowledged = 0;
  std::uint64_t submitted_unix_ns = 0;
};

/// What is in a journal, without the contents.
struct summary {
  std::string path;
  std::uint64_t schema = 0;
  std::uint64_t generation = 0;
  pid_t writer = 0;             ///< Process that has it open; 0 for none, -1 for an unknown one.
  std::uint64_t file_bytes = 0; ///< Of the database.
  std::uint64_t log_bytes = 0;  ///< Of the log beside it.
  std::uint64_t free_bytes = 0; ///< Of the database, in pages that are not used.
  std::optional<cluster_identity> identity;
  std::optional<epoch_decided> weights;
  std::uint64_t epoch_promised = 0;
  std::vector<batch_line> batches;
};

/// Reads a journal, also while a scheduler writes it, and changes nothing. Fails with `bad_config`.
result<summary> inspect(const std::string& path);

struct compaction {
  std::uint64_t bytes_before = 0; ///< Database and log.
  std::uint64_t bytes_after = 0;
};

/// Gives back all space that is not used, and checks the whole database meanwhile. What the journal
/// knows stays the same. Fails with `bad_config`, also when a process has it open.
result<compaction> compact(const std::string& path);

} // namespace rollcast::journal
