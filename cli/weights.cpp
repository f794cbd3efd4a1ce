#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cluster/wire/client.hpp"
#include "engine/base/hash.hpp"

#include <cinttypes>
#include <cstdio>
#include <string>
#include <system_error>

namespace rollcast::cli {

namespace {

void print_line(const wire::weights_served& served) {
  std::printf("epoch %" PRIu64 " is served by %" PRIu64 " workers: hash %s, %" PRIu64
              " tensors, %" PRIu64 " bytes",
              served.epoch, served.workers, to_string(served.hash).c_str(), served.tensors,
              served.bytes);
  for (const auto& phase : served.phases)
    std::printf(", %s %.3f s", phase.phase.c_str(), phase.seconds);
  std::printf(", serving paused %.4f s\n", served.pause_s);
}

result<wire::weights_served> update(wire::controller_client& client,
                                    const weights_options& options) {
  const auto timeout = std::chrono::seconds{options.timeout_s};
  if (options.rollback)
    return client.rollback_weights(timeout);
  // The scheduler does not know where this command was called.
  std::error_code failed;
  const auto directory = std::filesystem::absolute(options.from, failed);
  if (failed)
    return fail(errc::bad_config,
                "--from " + options.from.string() + ": " + failed.message() + "; give a full path");
  return client.load_weights({.directory = directory.string(),
                              .epoch = options.epoch,
                              .flip = options.flip == "chunk" ? wire::weight_flip::chunk_edge
                                                              : wire::weight_flip::between_batches,
                              .allow_non_finite = options.allow_non_finite},
                             timeout);
}

} // namespace

int run_weights(const weights_options& options) {
  if (options.from.empty() != options.rollback)
    return refuse({errc::bad_config, "weights needs either --from DIR or --rollback", {}});
  auto client =
    wire::controller_client::connect(options.connect, options.contact_timeout, options.keys);
  if (!client)
    return refuse_contact(client.error());
  const auto served = update(*client, options);
  if (!served && served.error().code == errc::timed_out)
    return refuse({errc::timed_out,
                   options.connect + " did not say within " + std::to_string(options.timeout_s)
                     + " s that the new weights are served; `rollcast status` tells how far the "
                       "update is, --timeout waits longer",
                   {}});
  if (!served)
    return refuse(served.error());
  print_line(*served);
  return exit_done;
}

} // namespace rollcast::cli
