#include "cli/stop_signal.hpp"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>

namespace rollcast::cli {

namespace {

std::atomic<bool> requested{false};

void note(int number) {
  if (requested.exchange(true)) {
    std::signal(number, SIG_DFL);
    std::raise(number);
  }
}

/// Waits for a signal or `end`. @returns whether it was a signal.
bool await_signal(const std::stop_token& end) {
  while (!end.stop_requested() && !stop_requested())
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  return stop_requested();
}

} // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = note;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

bool stop_requested() noexcept {
  return requested.load();
}

stop_watch::stop_watch()
  : watcher_([this](std::stop_token end) {
      if (await_signal(end))
        source_.request_stop();
    }) {}

leave_on_stop::leave_on_stop()
  : watcher_([](std::stop_token end) {
      if (await_signal(end))
        std::_Exit(0);
    }) {}

} // namespace rollcast::cli
