#include "cli/exit_code.hpp"

#include <algorithm>
#include <cstdio>
#include <string>

namespace rollcast::cli {

int exit_code_of(const error& e) noexcept {
  return e.code == errc::peer_lost || e.code == errc::timed_out ? exit_cluster_lost
                                                                : exit_bad_input;
}

int refuse(const error& e) {
  std::string line = e.detail;
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "rollcast: %s\n", line.c_str());
  return cli::exit_code_of(e);
}

} // namespace rollcast::cli
