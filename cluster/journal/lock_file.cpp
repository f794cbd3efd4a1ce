#include "cluster/journal/lock_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

namespace rollcast::journal {

namespace {

pid_t pid_in(int fd) {
  char text[32] = {};
  return ::pread(fd, text, sizeof text - 1, 0) > 0
           ? static_cast<pid_t>(std::strtol(text, nullptr, 10))
           : 0;
}

} // namespace

result<lock_file> lock_file::take(const std::string& journal_path) {
  const auto path = journal_path + ".lock";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0)
    return fail(errc::bad_config, "journal " + journal_path + ": cannot open " + path + ": "
                                    + std::strerror(errno)
                                    + "; its directory must exist and be writable");
  lock_file lock{fd};
  // `holder` takes the lock for a moment too, so the first refusal means little.
  constexpr int tries = 20;
  for (int i = 1; ::flock(fd, LOCK_EX | LOCK_NB) != 0; ++i) {
    if (errno != EWOULDBLOCK && errno != EINTR)
      return fail(errc::bad_config, "journal " + journal_path + ": cannot lock " + path + ": "
                                      + std::strerror(errno));
    if (i == tries)
      return fail(errc::bad_config, "journal " + journal_path + ": process "
                                      + std::to_string(pid_in(fd))
                                      + " has it open; stop that one or name another file");
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  // Only words of a refusal: a disk that is full must not keep us from starting.
  const auto text = std::to_string(::getpid()) + "\n";
  if (::pwrite(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()))
    (void)!::ftruncate(fd, static_cast<off_t>(text.size()));
  return lock;
}

pid_t lock_file::holder(const std::string& journal_path) {
  const int fd = ::open((journal_path + ".lock").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return 0;
  const lock_file closes{fd};
  if (::flock(fd, LOCK_SH | LOCK_NB) == 0)
    return 0;
  const auto pid = pid_in(fd);
  return pid > 0 ? pid : -1;
}

lock_file::~lock_file() {
  if (fd_ >= 0)
    ::close(fd_);
}

} // namespace rollcast::journal
