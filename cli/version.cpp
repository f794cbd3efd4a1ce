#include "cli/version.hpp"

#include "engine/numerics/profile_list.hpp"
#include "kernels/dispatch.hpp"

#include <rollcast_commit.h> // made by the build

#include <string_view>

namespace rollcast::cli {

namespace {

#if defined(__clang__)
constexpr std::string_view compiler = "clang " __clang_version__;
#else
constexpr std::string_view compiler = "g++ " __VERSION__;
#endif

#if defined(__x86_64__)
constexpr std::string_view processor = "x86-64";
#elif defined(__aarch64__)
constexpr std::string_view processor = "aarch64";
#else
constexpr std::string_view processor = "unknown processor";
#endif

void add(std::string& list, std::string_view name) {
  list += list.empty() ? "" : ", ";
  list += name;
}

} // namespace

std::string version_text() {
  std::string profiles;
  for (const auto& profile : all_profiles())
    add(profiles, profile.name);
  std::string sets;
  for (const auto set : kernels::instruction_sets())
    add(sets, set);
  const std::string_view type{ROLLCAST_BUILD_TYPE};
  return "rollcast " ROLLCAST_VERSION "\nnumerics profiles: " + profiles
         + "\ninstruction sets: " + (sets.empty() ? "none that the kernels need" : sets)
         + "\nbuild: " + std::string{compiler} + ", " + std::string{type.empty() ? "no type" : type}
         + ", " + std::string{processor} + ", commit " ROLLCAST_COMMIT;
}

} // namespace rollcast::cli
