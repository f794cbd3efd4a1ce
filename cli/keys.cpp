#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cluster/security/curve_keys.hpp"

#include <cstdio>

namespace rollcast::cli {

int run_keys_new(const std::filesystem::path& prefix) {
  const auto keys = make_keys();
  if (const auto ok = write_keys(prefix, keys); !ok)
    return refuse(ok.error());
  std::printf("%s.secret stays with its owner; %s.public is for others: %s\n", prefix.c_str(),
              prefix.c_str(), keys.public_key.c_str());
  return exit_done;
}

} // namespace rollcast::cli
