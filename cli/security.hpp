#pragma once

#include "cluster/security/curve_policy.hpp"

namespace rollcast::cli {

/// Reads the key of the data sockets; null if there is none.
inline result<std::shared_ptr<curve_policy>> data_keys(const std::filesystem::path& file) {
  if (file.empty())
    return std::shared_ptr<curve_policy>{};
  curve_policy_options options;
  options.secret = file;
  return curve_policy::open(std::move(options));
}

} // namespace rollcast::cli
