#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct sqlite3; // of SQLite
struct sqlite3_stmt;

/// The little of SQLite that we use, with failures as results. Inside cluster/journal only.
namespace rollcast::journal {

class database;

/// Bytes to bind. They must stay until the statement has run.
using blob = std::span<const std::byte>;

/// A prepared statement. Integers are 64 bits; SQLite calls them signed, we keep their bits.
class statement {
public:
  /// Binds the arguments in order (std::uint64_t, std::string_view, blob, or std::nullopt) and runs
  /// to the end.
  template <class... Args>
  result<void> run(const Args&... args) {
    start(args...);
    auto more = step();
    reset();
    return more ? result<void>{} : fail(more);
  }
  /// Binds the arguments; `step` gets rows then.
  template <class... Args>
  void start(const Args&... args) {
    reset();
    int at = 0;
    (bind(++at, args), ...);
  }
  /// @returns true for a row, false after the last one.
  result<bool> step();
  /// Ends what `start` began, so that the transaction can end.
  void reset() noexcept;

  /// Columns of the row, from 0. Blobs and texts stay until the next step.
  std::uint64_t number(int column) const noexcept;
  blob bytes(int column) const noexcept;
  std::string text(int column) const;
  bool null(int column) const noexcept;

private:
  friend class database;
  struct finalize {
    void operator()(sqlite3_stmt* s) const noexcept;
  };
  statement(const database& owner, sqlite3_stmt* s) noexcept : owner_(&owner), stmt_(s) {}
  void bind(int at, std::uint64_t value) noexcept;
  void bind(int at, std::string_view value) noexcept;
  void bind(int at, blob value) noexcept;
  void bind(int at, std::nullopt_t) noexcept;
  void bind(int at, const std::optional<std::string_view>& value) noexcept;
  void bind(int at, const std::optional<blob>& value) noexcept;
  void note(int code) noexcept;

  const database* owner_;
  std::unique_ptr<sqlite3_stmt, finalize> stmt_;
  int failed_ = 0; ///< First bind that failed.
};

/// How a database is opened.
enum class access : std::uint8_t {
  write,     ///< Made if it is not there.
  read,      ///< Beside a process that writes.
  immutable, ///< Nobody writes: nothing is made beside the file, so its directory may be read-only.
};

/// A connection, for one thread at a time. Stays where it is: statements point to it.
class database {
public:
  /// Fails with `io_failed`.
  static result<std::unique_ptr<database>> open(const std::string& path, access how);
  ~database();
  database(const database&) = delete;
  database& operator=(const database&) = delete;

  /// Runs statements that return nothing of interest.
  result<void> run(const std::string& sql);
  /// Returns the first column of the first row, or 0 when there is no row.
  result<std::uint64_t> number(const std::string& sql);
  result<statement> prepare(std::string_view sql) const;

  /// Moves pages from the log to the database. With `truncate` it waits for readers and empties the
  /// log, otherwise it moves what nobody reads.
  result<void> checkpoint(bool truncate);
  /// Pages in the log after the last commit.
  int log_pages() const noexcept { return log_pages_; }
  /// Undoes what is not committed, if anything is.
  void roll_back() noexcept;

  const std::string& path() const noexcept { return path_; }
  /// The line of what SQLite said last: path, words, number.
  error failure(int code) const;
  /// True for what a file of ours never is: damaged, or no database.
  static bool damaged(int code) noexcept;
  /// Of a full disk, say: the same may succeed later.
  static bool may_pass(int code) noexcept;
  /// True for what breaks a constraint of a table.
  static bool contradicts(int code) noexcept;
  int last_code() const noexcept;

private:
  explicit database(std::string path) : path_(std::move(path)) {}
  std::string path_;
  sqlite3* handle_ = nullptr;
  int log_pages_ = 0;
};

} // namespace rollcast::journal
