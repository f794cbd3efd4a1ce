#pragma once

#include <stop_token>
#include <thread>

namespace rollcast::cli {

/// Makes SIGINT and SIGTERM set a flag instead of ending the process (system calls are
/// interrupted), and SIGPIPE harmless. A second signal ends the process at once.
void catch_stop_signals();

/// True once one has come.
bool stop_requested() noexcept;

/// Turns the flag into a stop token for code that knows nothing of signals.
class stop_watch {
public:
  stop_watch();
  std::stop_token token() const noexcept { return source_.get_token(); }

private:
  std::stop_source source_;
  std::jthread watcher_; ///< Last: it uses the source.
};

/// While it lives, a stop signal ends the process with code 0 within 20 ms. For times when nothing
/// is there yet that could be lost, and nobody looks at `stop_requested`: loading a model.
class leave_on_stop {
public:
  leave_on_stop();

private:
  std::jthread watcher_;
};

} // namespace rollcast::cli
