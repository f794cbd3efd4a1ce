#pragma once

#include "engine/backend/activation_observer.hpp"
#include "engine/base/error.hpp"
#include "engine/dump/dump_format.hpp"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace rollcast {

/// Writes what a device computes, one sequence after another, into a dump directory. Every row must
/// come once, those of an operation in ascending position; in which pieces they come changes no
/// byte of the dump.
class dump_writer final : public activation_observer {
public:
  /// Takes a new or empty directory. @param header  Without sequences, which `begin` adds.
  /// @returns `io_failed` if it cannot be made; `bad_config` if something is in it.
  static result<std::unique_ptr<dump_writer>> create(const std::filesystem::path& directory,
                                                     dump_header header);

  /// Opens the files of the next sequence. @pre none is open.
  result<void> begin(const dump_sequence& sequence);

  /// Takes rows of the open sequence; those of operations that the header lacks are passed over.
  void see(const observed_rows& rows) override;

  /// Closes the sequence. @returns what went wrong since `begin`: `io_failed` (no space, say), or
  /// `bad_config` for a row that came twice, too early, too wide, or not at all.
  result<void> end();

  /// Writes dump.json, without which a directory is no dump.
  result<void> finish();

private:
  dump_writer(std::filesystem::path directory, dump_header header)
    : directory_(std::move(directory)), header_(std::move(header)) {}

  void refuse(const std::string& why);
  void write_hashes(const dump_block& block, std::uint32_t row, const observed_rows& rows);
  void write_values(const dump_block& block, std::uint32_t row, const observed_rows& rows);

  std::filesystem::path directory_;
  dump_header header_;
  std::vector<dump_block> blocks_;
  std::vector<std::uint32_t> seen_; ///< Rows of each block.
  std::ofstream hashes_;
  std::ofstream values_;
  std::optional<error> failure_; ///< The first since `begin`.
  std::vector<std::byte> buffer_;
};

} // namespace rollcast
