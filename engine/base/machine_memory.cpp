#include "engine/base/machine_memory.hpp"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace rollcast {
namespace {

/// The number in a file; `otherwise` without one, as for "max".
std::uint64_t number_in(const std::filesystem::path& file, std::uint64_t otherwise) {
  std::uint64_t number = 0;
  return std::ifstream{file} >> number ? number : otherwise;
}

/// The least limit of a group and those above it. `root` stands for the process's own group where
/// the groups' names are those of the host and their directories are not there.
std::uint64_t least_limit(const std::filesystem::path& root, std::string group,
                          const std::string& file, std::uint64_t least) {
  for (; group.size() > 1; group.resize(group.rfind('/')))
    least = std::min(least, number_in(root / group.substr(1) / file, least));
  return std::min(least, number_in(root / file, least));
}

} // namespace

std::uint64_t machine_memory_bytes(const std::filesystem::path& groups,
                                   const std::filesystem::path& own) {
  auto least = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES))
               * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  std::ifstream lines{own};
  for (std::string line; std::getline(lines, line);) { // number:controllers:group
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/')
      continue;
    const auto controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const auto group = line.substr(second + 1);
    if (controllers == ",,")
      least = least_limit(groups, group, "memory.max", least);
    else if (controllers.find(",memory,") != std::string::npos)
      least = least_limit(groups / "memory", group, "memory.limit_in_bytes", least);
  }
  return least;
}

} // namespace rollcast
