#include "cli/exit_code.hpp"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

namespace rollcast::cli {

int exit_code_of(const error& e) noexcept {
  switch (e.code) {
    case errc::peer_lost:
    case errc::timed_out: return exit_cluster_lost;
    case errc::cancelled: return exit_cancelled;
    default: return exit_bad_input;
  }
}

int refuse(const error& e) {
  std::string line = e.detail;
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "rollcast: %s\n", one_line(std::move(line)).c_str());
  return exit_code_of(e);
}

int refuse_contact(const error& e) {
  (void)refuse(e);
  return exit_bad_input;
}

} // namespace rollcast::cli
