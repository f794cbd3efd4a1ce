#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cluster/wire/client.hpp"

#include <cinttypes>
#include <cstdio>

namespace rollcast::cli {

namespace {

/// Acknowledges whatever comes until the batch's end has come.
result<std::uint64_t> drop_results(wire::controller_client& client, const discard_options& options,
                                   std::uint64_t responses) {
  std::uint64_t dropped = 0;
  for (;;) {
    auto event = client.next_event(options.timeout);
    if (!event)
      return fail(event);
    if (const auto* ready = std::get_if<wire::response_ready>(&*event)) {
      ++dropped;
      if (auto ok = client.ack(options.batch_key, ready->sequence); !ok)
        return fail(ok);
      continue;
    }
    // BatchDone, or the Error in its place.
    if (auto ok = client.ack(options.batch_key, responses + 1); !ok)
      return fail(ok);
    if (auto heard = client.status(); !heard) // so that it was taken in before we go
      return fail(heard);
    return dropped;
  }
}

} // namespace

int run_discard(const discard_options& options) {
  auto client = wire::controller_client::connect(options.connect, options.timeout, options.keys);
  if (!client)
    return refuse_contact(client.error());
  if (auto ok = client->cancel(options.batch_key); !ok)
    return refuse(ok.error());
  const auto resumed = client->resume(options.batch_key, 0);
  if (!resumed)
    return refuse(resumed.error());
  if (resumed->first_sequence > resumed->responses + 1) {
    std::printf("batch %s was collected before\n", options.batch_key.c_str());
    return exit_done;
  }
  const auto dropped = drop_results(*client, options, resumed->responses);
  if (!dropped)
    return refuse(dropped.error());
  std::printf("batch %s is ended, %" PRIu64 " results are dropped\n", options.batch_key.c_str(),
              *dropped);
  return exit_done;
}

} // namespace rollcast::cli
