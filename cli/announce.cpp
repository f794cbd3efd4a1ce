#include "cli/announce.hpp"

#include "cli/stop_signal.hpp"

#include <nlohmann/json.hpp>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace rollcast::cli {

namespace {

/// Reads until a newline, the end of the stream or the deadline.
result<std::string> read_line(int fd, std::chrono::steady_clock::time_point deadline) {
  std::string line;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      return fail(errc::timed_out, "no sign of readiness");
    if (stop_requested())
      return fail(errc::cancelled, "stopped before it was ready");
    pollfd wait{fd, POLLIN, 0};
    if (::poll(&wait, 1, static_cast<int>(std::min<std::int64_t>(left.count(), 100))) <= 0)
      continue;
    char byte = 0;
    const ssize_t got = ::read(fd, &byte, 1);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return fail(errc::peer_lost, "ended before it was ready");
    if (byte == '\n')
      return line;
    line += byte;
  }
}

} // namespace

void announce(int fd, const nlohmann::json& what) {
  if (fd < 0)
    return;
  const std::string line = what.dump() + "\n";
  for (std::size_t sent = 0; sent < line.size();) {
    const ssize_t n = ::write(fd, line.data() + sent, line.size() - sent);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      break; // The parent is gone; there is nobody left to tell.
    sent += static_cast<std::size_t>(n);
  }
  ::close(fd);
}

nlohmann::json announcement_of(const error& e) {
  return {{"error", e.detail}, {"code", static_cast<int>(e.code)}};
}

result<nlohmann::json> await_announcement(int fd, std::chrono::steady_clock::time_point deadline) {
  const auto line = read_line(fd, deadline);
  if (!line)
    return fail(line);
  const auto said = nlohmann::json::parse(*line, nullptr, false);
  if (!said.is_object())
    return fail(errc::peer_lost, "said something unexpected: " + *line);
  if (said.contains("error"))
    return fail(static_cast<errc>(said.value("code", 0)), said.value("error", ""));
  return said;
}

} // namespace rollcast::cli
