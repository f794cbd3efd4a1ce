#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "engine/dump/dump_compare.hpp"

#include <cstdio>

namespace rollcast::cli {

int run_compare(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto compared = compare_dumps(a, b);
  if (!compared)
    return refuse(compared.error());
  for (const auto& note : compared->notes)
    std::printf("note: %s\n", note.c_str());
  if (!compared->first) {
    std::printf("equal: %llu rows of %llu sequences\n",
                static_cast<unsigned long long>(compared->rows),
                static_cast<unsigned long long>(compared->sequences));
    return exit_done;
  }
  const auto& first = *compared->first;
  std::printf("first difference: %s\n", to_text(first).c_str());
  if (!first.at)
    std::printf("to name the element, dump both with --dump-values (and --dump-rows 0 or at least "
                "%u)\n",
                first.row + 1);
  return exit_check_failed;
}

} // namespace rollcast::cli
