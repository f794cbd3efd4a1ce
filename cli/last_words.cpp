#include "cli/last_words.hpp"

#include "cli/exit_code.hpp"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <system_error>

namespace rollcast::cli {

namespace {

/// MiB that the process has mapped, 0 if nobody knows. From a file, by hand: nothing may allocate.
unsigned long mapped_mib() {
  unsigned long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r"); file != nullptr) {
    if (std::fscanf(file, "%lu", &pages) != 1)
      pages = 0;
    std::fclose(file);
  }
  return pages / 1024 * static_cast<unsigned long>(::sysconf(_SC_PAGESIZE)) / 1024;
}

void say(const char* line, int length) {
  if (length > 0)
    (void)!::write(STDERR_FILENO, line, static_cast<std::size_t>(length));
}

[[noreturn]] void last_words() {
  char line[256];
  try {
    if (const auto why = std::current_exception())
      std::rethrow_exception(why);
    say(line, std::snprintf(line, sizeof line, "rollcast: ended by std::terminate: a bug\n"));
  } catch (const std::bad_alloc&) {
    say(line, std::snprintf(line, sizeof line,
                            "rollcast: out of memory with %lu MiB mapped: give the process more, "
                            "or fewer KV blocks, spill space and draft memory\n",
                            mapped_mib()));
    ::_exit(exit_out_of_memory);
  } catch (const std::system_error& e) {
    // Of starting a thread, whose stack had no room, for one.
    const bool lacks = e.code() == std::errc::resource_unavailable_try_again
                       || e.code() == std::errc::not_enough_memory;
    say(line, std::snprintf(line, sizeof line, "rollcast: ended, %s with %lu MiB mapped: %.120s\n",
                            lacks ? "no memory or no thread left" : "a failure of the system",
                            mapped_mib(), e.what()));
    if (lacks)
      ::_exit(exit_out_of_memory);
  } catch (const std::exception& e) {
    say(line,
        std::snprintf(line, sizeof line,
                      "rollcast: ended by an exception that nobody caught: %.180s\n", e.what()));
  } catch (...) {
    say(line, std::snprintf(line, sizeof line, "rollcast: ended by something thrown: a bug\n"));
  }
  std::abort();
}

} // namespace

void install_last_words() {
  std::set_terminate(last_words);
}

} // namespace rollcast::cli
