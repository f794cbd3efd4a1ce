#include "cli/local_cluster.hpp"

#include "cli/announce.hpp"
#include "cli/role.hpp"

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds restart_pause_first{250};
constexpr std::chrono::milliseconds restart_pause_max{30'000};

/// The environment without the options in it: a child is told everything by its arguments, and an
/// option of `run` may mean something else to a worker.
std::vector<char*> environment_without_options() {
  std::vector<char*> kept;
  for (char** variable = environ; *variable != nullptr; ++variable)
    if (!std::string_view{*variable}.starts_with("ROLLCAST_"))
      kept.push_back(*variable);
  kept.push_back(nullptr);
  return kept;
}

/// Forks and runs this very binary with `arguments`. The write end of the pipe stays open in the
/// child, which finds its number in `--announce-fd`.
pid_t run_self(std::vector<std::string> arguments, int write_fd) {
  arguments.insert(arguments.begin(), "rollcast");
  arguments.insert(arguments.end(), {"--announce-fd", std::to_string(write_fd)});
  std::vector<char*> argv;
  for (auto& argument : arguments)
    argv.push_back(argument.data());
  argv.push_back(nullptr);
  const auto environment = environment_without_options();
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid != 0)
    return pid;
  // A group of its own, so that Ctrl-C reaches the parent alone and it decides the order.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent)
    ::_exit(3);
  ::execve("/proc/self/exe", argv.data(), environment.data());
  ::_exit(3);
}

/// Where a process of this machine reaches what listens on `address`.
std::string host_to_dial(const std::string& address) {
  return is_wildcard(address) ? "127.0.0.1" : address;
}

/// True once the child has ended; then `pid` is reaped.
bool ended(pid_t pid) {
  int status = 0;
  return pid > 0 && ::waitpid(pid, &status, WNOHANG) == pid;
}

/// SIGTERM to all, SIGKILL to whoever is left after `grace`.
void end_all(std::vector<pid_t> left, std::chrono::milliseconds grace) {
  std::erase_if(left, [](pid_t pid) { return pid <= 0; });
  for (const pid_t pid : left)
    ::kill(pid, SIGTERM);
  const auto deadline = clock::now() + grace;
  for (;;) {
    std::erase_if(left, [](pid_t pid) { return ended(pid); });
    if (left.empty() || clock::now() >= deadline)
      break;
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
  for (const pid_t pid : left) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
}

} // namespace

result<local_cluster::child> local_cluster::spawn(std::vector<std::string> arguments) const {
  int ends[2];
  if (::pipe(ends) != 0)
    return fail(errc::io_failed, std::string{"cannot make a pipe: "} + std::strerror(errno));
  ::fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  child process;
  process.arguments = arguments;
  process.pid = run_self(std::move(arguments), ends[1]);
  ::close(ends[1]);
  process.ready_fd = ends[0];
  process.started_at = clock::now();
  if (process.pid < 0) {
    ::close(ends[0]);
    return fail(errc::io_failed, std::string{"cannot fork: "} + std::strerror(errno));
  }
  return process;
}

result<std::string> local_cluster::await_ready(child& process, clock::time_point deadline) const {
  const int fd = std::exchange(process.ready_fd, -1);
  const auto said = await_announcement(fd, deadline);
  ::close(fd);
  if (!said)
    return fail(said);
  return said->dump();
}

result<local_cluster> local_cluster::start(const local_cluster_options& options) {
  local_cluster cluster;
  cluster.start_timeout_ = options.start_timeout;
  cluster.restart_workers_ = options.restart_workers;
  cluster.stop_grace_ = options.stop_grace;
  const auto deadline = clock::now() + options.start_timeout;
  auto scheduler_arguments = options.scheduler_arguments;
  scheduler_arguments.insert(scheduler_arguments.begin(), "scheduler");
  auto scheduler = cluster.spawn(std::move(scheduler_arguments));
  if (!scheduler)
    return fail(scheduler);
  cluster.scheduler_ = *scheduler;
  const auto ready = cluster.await_ready(cluster.scheduler_, deadline);
  if (!ready)
    return fail(ready.error().code, "scheduler: " + ready.error().detail);
  const auto where = nlohmann::json::parse(*ready);
  cluster.endpoint_ = where.value("frontend", "");
  if (const int port = where.value("metrics_port", 0); port != 0)
    cluster.metrics_endpoint_ =
      "http://" + host_to_dial(where.value("metrics_address", "")) + ":" + std::to_string(port);
  const auto control_host = host_to_dial(where.value("control_address", ""));
  const auto control_port = std::to_string(where.value("control_port", 0));
  std::string drafts;
  if (!options.draft_server_arguments.empty()) {
    const auto started = cluster.start_draft_server(options.draft_server_arguments, deadline);
    if (!started)
      return fail(started.error().code, "draft server: " + started.error().detail);
    drafts = *started;
  }
  for (auto arguments : options.worker_arguments) {
    arguments.insert(arguments.begin(), "worker");
    arguments.insert(arguments.end(),
                     {"--scheduler-host", control_host, "--scheduler-port", control_port});
    if (!drafts.empty())
      arguments.insert(arguments.end(), {"--draft-server", drafts});
    auto worker = cluster.spawn(std::move(arguments));
    if (!worker)
      return fail(worker);
    cluster.workers_.push_back(*worker);
  }
  for (auto& worker : cluster.workers_)
    if (const auto said = cluster.await_ready(worker, deadline); !said)
      return fail(said.error().code, "worker: " + said.error().detail);
  return cluster;
}

/// Starts the draft server on any port, on which it is also started again. @returns where it is.
result<std::string>
local_cluster::start_draft_server(std::vector<std::string> arguments,
                                  std::chrono::steady_clock::time_point deadline) {
  arguments.insert(arguments.begin(), "draft-server");
  auto first = arguments;
  first.insert(first.end(), {"--listen", "tcp://127.0.0.1:*"});
  auto started = spawn(std::move(first));
  if (!started)
    return fail(started);
  draft_server_ = *started;
  const auto ready = await_ready(draft_server_, deadline);
  if (!ready)
    return fail(ready);
  const auto where = nlohmann::json::parse(*ready).value("drafts", "");
  arguments.insert(arguments.end(), {"--listen", where});
  draft_server_.arguments = std::move(arguments);
  return where;
}

local_cluster::local_cluster(local_cluster&& other) noexcept
  : scheduler_(std::exchange(other.scheduler_, {})),
    draft_server_(std::exchange(other.draft_server_, {})), workers_(std::move(other.workers_)),
    endpoint_(std::move(other.endpoint_)), metrics_endpoint_(std::move(other.metrics_endpoint_)),
    start_timeout_(other.start_timeout_), restart_workers_(other.restart_workers_),
    stop_grace_(other.stop_grace_) {
  other.workers_.clear();
}

local_cluster::~local_cluster() {
  stop();
}

/// Says why a child ended and when it is started again.
void local_cluster::bury(child& process, const char* role, bool again) const {
  std::string last_words;
  if (process.ready_fd >= 0)
    if (const auto said = await_ready(process, clock::now() + std::chrono::milliseconds{100});
        !said)
      last_words = ": " + said.error().detail;
  const auto now = clock::now();
  const bool lived = now - process.started_at > restart_pause_max;
  process.pause = lived || process.pause.count() == 0
                    ? restart_pause_first
                    : std::min(process.pause * 2, restart_pause_max);
  process.restart_at = now + process.pause;
  spdlog::warn("{} process {} ended{}{}", role, process.pid, last_words,
               again ? "; it is started again in " + std::to_string(process.pause.count()) + " ms"
                     : "");
  process.pid = -1;
}

/// Starts a child again. Nobody waits for it: it registers by itself.
void local_cluster::restart(child& process) const {
  auto fresh = spawn(process.arguments);
  if (!fresh) {
    process.pause = std::min(process.pause * 2, restart_pause_max);
    process.restart_at = clock::now() + process.pause;
    spdlog::warn("cannot start a {} again, next try in {} ms: {}", process.arguments.front(),
                 process.pause.count(), fresh.error().detail);
    return;
  }
  process.pid = fresh->pid;
  process.ready_fd = fresh->ready_fd;
  process.started_at = clock::now();
}

result<void> local_cluster::supervise() {
  if (ended(scheduler_.pid)) {
    scheduler_.pid = -1;
    return fail(errc::peer_lost, "the scheduler process ended");
  }
  if (ended(draft_server_.pid))
    bury(draft_server_, "draft server", true);
  if (draft_server_.pid <= 0 && !draft_server_.arguments.empty()
      && clock::now() >= draft_server_.restart_at)
    restart(draft_server_);
  bool any = false;
  for (auto& worker : workers_) {
    if (ended(worker.pid))
      bury(worker, "worker", restart_workers_);
    if (worker.pid <= 0 && restart_workers_ && clock::now() >= worker.restart_at)
      restart(worker);
    any = any || worker.pid > 0 || restart_workers_;
  }
  if (!any)
    return fail(errc::peer_lost,
                "all " + std::to_string(workers_.size()) + " worker processes ended");
  return {};
}

void local_cluster::stop() {
  const auto grace = stop_grace_;
  // Workers first: while they drain they still need their scheduler.
  std::vector<pid_t> pids;
  for (const auto& worker : workers_) {
    pids.push_back(worker.pid);
    if (worker.ready_fd >= 0)
      ::close(worker.ready_fd);
  }
  workers_.clear();
  end_all(std::move(pids), grace);
  if (draft_server_.ready_fd >= 0)
    ::close(draft_server_.ready_fd);
  end_all({std::exchange(draft_server_, {}).pid}, grace);
  end_all({std::exchange(scheduler_.pid, -1)}, grace);
}

} // namespace rollcast::cli
