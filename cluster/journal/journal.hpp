#pragma once

#include "cluster/journal/records.hpp"
#include "engine/base/error.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace rollcast::journal {

struct journal_options {
  std::string path; ///< Of the SQLite database; "-wal", "-shm" and ".lock" lie beside it.
  /// How long records are gathered for one commit. An idle journal commits the first at once.
  std::chrono::milliseconds gather{25};
  std::uint64_t bytes_max = std::uint64_t{16} << 30;      ///< Of the database; then no new batches.
  std::size_t pending_bytes_max = std::size_t{256} << 20; ///< Not yet on disk; then no new batches.
  std::chrono::milliseconds retry{200}; ///< After a commit that failed, for a full disk say.
};

/// How a journal is doing; any thread may ask.
struct journal_health {
  bool takes_batches = true; ///< False: the disk is full or a bound is reached.
  std::string why_not;       ///< One line: what, where, the numbers, what to do.
  std::uint64_t bytes = 0;   ///< Of the database, without pages that are free.
  std::uint64_t pending_bytes = 0;
};

/// Keeps records in a SQLite database (WAL, synchronous FULL). A thread of its own commits them in
/// groups, in order; nothing is lost or reordered by a commit that fails, it is tried again until
/// it succeeds. One process at a time has it open for writing.
class journal final : public sink {
public:
  struct opened; // {std::unique_ptr<journal> keeper; image found;}

  /// Opens or makes the database and reads what it knows. Fails with `bad_config` (another process
  /// has it, it is no journal, of a newer schema, or unreadable; detail: the path and what to do),
  /// or with `io_failed` (the disk is full or broken: it may succeed later).
  static result<opened> open(journal_options options);

  /// Commits what is pending, for five seconds at most if that fails, and closes.
  ~journal() override;
  journal(const journal&) = delete;
  journal& operator=(const journal&) = delete;

  /// Any thread; does not block.
  void write(record what) override;
  /// How many records were written, and how many of them are on disk. Any thread.
  std::uint64_t written() const noexcept;
  std::uint64_t durable() const noexcept;
  /// Told of a new `durable()` and of how long the commit took, on the journal's thread. Once,
  /// before the first `write`.
  void on_commit(std::function<void(std::uint64_t durable, double seconds)> told);
  journal_health health() const;

private:
  class writer;
  explicit journal(std::unique_ptr<writer> w) noexcept;
  std::unique_ptr<writer> writer_;
};

struct journal::opened {
  std::unique_ptr<journal> keeper;
  image found;
};

} // namespace rollcast::journal
