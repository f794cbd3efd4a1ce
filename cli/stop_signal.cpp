#include "cli/stop_signal.hpp"

#include <atomic>
#include <chrono>
#include <csignal>

namespace rollcast::cli {

namespace {

std::atomic<bool> requested{false};

void note(int number) {
  if (requested.exchange(true)) {
    std::signal(number, SIG_DFL);
    std::raise(number);
  }
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
      while (!end.stop_requested() && !stop_requested())
        std::this_thread::sleep_for(std::chrono::milliseconds{20});
      if (stop_requested())
        source_.request_stop();
    }) {}

} // namespace rollcast::cli
