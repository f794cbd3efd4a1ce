#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <vector>

namespace rollcast {

/// Lets this process open only so many files more, until the end of the scope.
class few_files {
public:
  explicit few_files(int more) {
    std::vector<int> taken;
    for (int i = 0; i <= more; ++i)
      taken.push_back(::dup(STDERR_FILENO));
    ::getrlimit(RLIMIT_NOFILE, &before_);
    auto fewer = before_;
    fewer.rlim_cur = static_cast<rlim_t>(taken.back());
    ::setrlimit(RLIMIT_NOFILE, &fewer);
    for (const int descriptor : taken)
      ::close(descriptor);
  }
  ~few_files() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  few_files(const few_files&) = delete;
  few_files& operator=(const few_files&) = delete;

private:
  rlimit before_{};
};

} // namespace rollcast
