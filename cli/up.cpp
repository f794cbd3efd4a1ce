#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/local_launch.hpp"
#include "cli/stop_signal.hpp"

#include <cstdio>
#include <thread>

namespace rollcast::cli {

int run_up(const cluster_options& options) {
  catch_stop_signals();
  auto cluster = launch(options, true);
  if (!cluster)
    return refuse(cluster.error());
  std::printf("rollcast: scheduler and %u workers are up; controllers connect to %s\n",
              options.workers, cluster->endpoint().c_str());
  if (!cluster->metrics_endpoint().empty())
    std::printf("rollcast: metrics at %s/metrics; stop with Ctrl-C\n",
                cluster->metrics_endpoint().c_str());
  std::fflush(stdout);
  while (!stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds{200});
    if (auto ok = cluster->supervise(); !ok)
      return refuse(ok.error());
  }
  cluster->stop();
  return exit_done;
}

} // namespace rollcast::cli
