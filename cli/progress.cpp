#include "cli/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace rollcast::cli {

progress::progress(std::uint64_t responses)
  : responses_(std::max<std::uint64_t>(responses, 1)), terminal_(::isatty(STDERR_FILENO) == 1) {}

void progress::show(std::uint64_t finished, std::uint64_t tokens, bool final) {
  const auto now = clock::now();
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double rate = seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  const auto count = static_cast<unsigned long long>(finished);
  const auto all = static_cast<unsigned long long>(responses_);
  const auto made = static_cast<unsigned long long>(tokens);
  if (!terminal_) {
    const std::uint64_t tenths = finished * 10 / responses_;
    if (tenths <= tenths_)
      return;
    tenths_ = tenths;
    std::fprintf(stderr, "%5.1f s  %llu of %llu responses, %llu tokens, %.0f tokens/s\n", seconds,
                 count, all, made, rate);
    return;
  }
  if (!final && now - drawn_ < std::chrono::milliseconds{100})
    return;
  drawn_ = now;
  constexpr std::size_t width = 30;
  const std::size_t filled = std::min<std::size_t>(width, finished * width / responses_);
  const std::string bar = std::string(filled, '#') + std::string(width - filled, '.');
  std::fprintf(stderr, "\r[%s] %llu/%llu responses  %llu tokens  %.0f tokens/s  %.1f s ",
               bar.c_str(), count, all, made, rate, seconds);
  if (final)
    std::fputc('\n', stderr);
  std::fflush(stderr);
}

} // namespace rollcast::cli
