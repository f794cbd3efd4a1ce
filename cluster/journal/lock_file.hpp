#pragma once

#include "engine/base/error.hpp"

#include <sys/types.h>

#include <string>
#include <utility>

namespace rollcast::journal {

/// Keeps a second process from writing to a journal: a lock on the file PATH.lock, which the system
/// takes away when the process ends, however it ends. The file holds the process's id and stays.
class lock_file {
public:
  /// Fails with `bad_config`: another process has it (detail: its id), or the file cannot be made.
  static result<lock_file> take(const std::string& journal_path);
  /// Returns the id of the process that writes to the journal, 0 if there is none, -1 if
  /// it did not say.
  static pid_t holder(const std::string& journal_path);

  lock_file(lock_file&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  lock_file& operator=(lock_file&&) = delete;
  ~lock_file();

private:
  explicit lock_file(int fd) noexcept : fd_(fd) {}
  int fd_;
};

} // namespace rollcast::journal
