#pragma once

#include "engine/base/error.hpp"

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace rollcast::cli {

/// What a cluster of child processes on this machine is made of.
struct local_cluster_options {
  std::vector<std::string> scheduler_arguments;           ///< After `rollcast scheduler`.
  std::vector<std::vector<std::string>> worker_arguments; ///< One list for each worker.
  /// After `rollcast draft-server`; empty: none. It is started again whenever it ends.
  std::vector<std::string> draft_server_arguments;
  std::chrono::milliseconds start_timeout{60000}; ///< Until every process is ready.
  /// Start a worker again when it ends by itself: after 250 ms, and after twice the last pause, at
  /// most 30 s, when it did not live for 30 s.
  bool restart_workers = false;
  std::chrono::milliseconds stop_grace{5000}; ///< Between SIGTERM and SIGKILL, for each role.
};

/// A scheduler and its workers as child processes of this one, on loopback and free ports. Children
/// are stopped when this object goes, and by the kernel if this process is killed.
class local_cluster {
public:
  /// Starts the processes and waits until each says that it is ready. Fails with what the
  /// failing child announced, `timed_out`, `peer_lost`, or `cancelled` on Ctrl-C.
  static result<local_cluster> start(const local_cluster_options& options);

  local_cluster(local_cluster&& other) noexcept;
  local_cluster& operator=(local_cluster&&) = delete;
  ~local_cluster();

  /// Where controllers connect, e.g. "tcp://127.0.0.1:40123".
  const std::string& endpoint() const noexcept { return endpoint_; }
  /// Where Prometheus scrapes the scheduler, e.g. "http://127.0.0.1:40125", or "".
  const std::string& metrics_endpoint() const noexcept { return metrics_endpoint_; }

  /// Looks after the children: notes who ended and restarts workers if so asked. Fails with
  /// `peer_lost` when the scheduler, or every worker without being restarted, has ended.
  result<void> supervise();

  /// SIGTERM to the workers, the draft server and then the scheduler; SIGKILL to whoever outlives
  /// its grace. Workers that leave together cut their chunks at once, so this takes a step or two.
  void stop();

private:
  struct child {
    pid_t pid = -1;
    int ready_fd = -1;
    std::vector<std::string> arguments;
    std::chrono::steady_clock::time_point started_at;
    std::chrono::steady_clock::time_point restart_at; ///< Once it has ended.
    std::chrono::milliseconds pause{0}; ///< Before the next start; doubles while it does not last.
  };

  local_cluster() = default;
  result<child> spawn(std::vector<std::string> arguments) const;
  result<std::string> await_ready(child& process,
                                  std::chrono::steady_clock::time_point deadline) const;

  result<std::string> start_draft_server(std::vector<std::string> arguments,
                                         std::chrono::steady_clock::time_point deadline);
  void bury(child& process, const char* role, bool again) const;
  void restart(child& process) const;

  child scheduler_;
  child draft_server_; ///< Nobody waits for it: without one drafts are shorter.
  std::vector<child> workers_;
  std::string endpoint_;
  std::string metrics_endpoint_;
  std::chrono::milliseconds start_timeout_{0};
  bool restart_workers_ = false;
  std::chrono::milliseconds stop_grace_{0};
};

} // namespace rollcast::cli
