#pragma once

#include "cli/response_file.hpp"
#include "engine/base/error.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace rollcast::cli {

/// Where `run` leaves its files. Each response is on disk (`sync`) before it is acknowledged:
/// first, in order of arrival, in `responses.partial.jsonl`, and at the end, in order of (group,
/// index), in `responses.jsonl`. So a full disk or a crash loses nothing that the scheduler has
/// forgotten.
class output_dir {
public:
  /// Makes the directory and opens the partial file, in which an earlier run may have left
  /// responses: call `take_up` next. Fails with `io_failed`, path and reason, also when another run
  /// writes there.
  static result<output_dir> open(const std::filesystem::path& directory);

  output_dir(output_dir&& other) noexcept;
  output_dir& operator=(output_dir&&) = delete;
  ~output_dir();

  /// Returns the first `count` responses of the partial file, which an earlier run of the same
  /// batch kept and acknowledged, and drops what follows them: it comes again. With `count` 0 what
  /// is there belongs to another batch and is set aside as `responses.kept-<n>.jsonl`. Fails with
  /// `io_failed` when there are fewer, and then drops nothing.
  result<std::vector<response_record>> take_up(std::uint64_t count);

  /// Appends one response to the partial file. Fails with `io_failed`.
  result<void> keep(const response_record& record);
  /// Everything that was kept outlives the machine's power from now on. Fails with `io_failed`.
  result<void> sync();

  /// Writes `responses.jsonl` and `summary.json`, each as a whole or not at all, and removes the
  /// partial file. Fails with `io_failed`; then the partial file stays.
  result<void> finish(std::vector<response_record> records, const std::string& summary);

  std::filesystem::path responses_file() const { return directory_ / "responses.jsonl"; }
  std::filesystem::path partial_file() const { return directory_ / "responses.partial.jsonl"; }

private:
  result<void> open_partial();
  result<void> set_aside();
  explicit output_dir(std::filesystem::path directory) : directory_(std::move(directory)) {}

  std::filesystem::path directory_;
  int partial_ = -1;
};

} // namespace rollcast::cli
