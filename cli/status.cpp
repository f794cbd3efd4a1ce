#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/stop_signal.hpp"
#include "cluster/wire/client.hpp"

#include <nlohmann/json.hpp>

#include <cinttypes>
#include <cstdio>
#include <string>
#include <thread>

namespace rollcast::cli {

namespace {

nlohmann::ordered_json json_of(const wire::weights_status& weights) {
  auto workers = nlohmann::ordered_json::array();
  for (const auto& w : weights.workers)
    workers.push_back({{"worker", w.worker.value}, {"bytes", w.bytes}, {"prepared", w.prepared}});
  return {{"phase", weights.phase},
          {"epoch", weights.epoch},
          {"next_epoch", weights.next_epoch},
          {"previous_epoch", weights.previous_epoch},
          {"bytes_total", weights.bytes_total},
          {"seconds", weights.seconds},
          {"paused", weights.paused},
          {"workers", std::move(workers)}};
}

nlohmann::ordered_json json_of(const wire::status_report& status) {
  auto workers = nlohmann::ordered_json::array();
  for (const auto& w : status.workers)
    workers.push_back({{"worker", w.worker.value},
                       {"name", w.name},
                       {"state", w.state},
                       {"pid", w.pid},
                       {"endpoint", w.endpoint},
                       {"epoch", w.epoch},
                       {"running", w.running},
                       {"waiting", w.waiting},
                       {"kv_blocks_total", w.kv_blocks_total},
                       {"kv_blocks_used", w.kv_blocks_used},
                       {"kv_blocks_parked", w.kv_blocks_parked},
                       {"kv_tokens_spilled", w.kv_tokens_spilled},
                       {"generated_tokens", w.generated_tokens},
                       {"steps", w.steps},
                       {"busy_s", w.busy_s}});
  auto batches = nlohmann::ordered_json::array();
  for (const auto& b : status.batches)
    batches.push_back({{"batch_key", b.batch_key},
                       {"policy", b.policy},
                       {"responses", b.responses},
                       {"finished", b.finished},
                       {"running", b.running},
                       {"waiting", b.waiting},
                       {"generated_tokens", b.generated_tokens}});
  return {{"model", status.model},
          {"numerics_profile", status.numerics_profile},
          {"weight_version", status.weight_version},
          {"live_groups", status.live_groups},
          {"uptime_s", status.uptime_s},
          {"weights", json_of(status.weights)},
          {"workers", std::move(workers)},
          {"batches", std::move(batches)}};
}

void print_weights(const wire::weights_status& weights) {
  std::printf("weights: epoch %" PRIu64 ", %s", weights.epoch,
              weights.phase.empty() ? "-" : weights.phase.c_str());
  if (weights.next_epoch != 0)
    std::printf(" epoch %" PRIu64 " (%.1f MiB to each worker, %.1f s so far)", weights.next_epoch,
                static_cast<double>(weights.bytes_total) / 0x1p20, weights.seconds);
  if (weights.previous_epoch != 0)
    std::printf(", epoch %" PRIu64 " held for a rollback", weights.previous_epoch);
  std::printf("%s\n", weights.paused ? ", serving is PAUSED" : "");
  for (const auto& w : weights.workers)
    std::printf("  worker %" PRIu64 ": %.1f MiB%s\n", w.worker.value,
                static_cast<double>(w.bytes) / 0x1p20, w.prepared ? ", prepared" : "");
}

void print_tables(const wire::status_report& status) {
  std::printf("model %s, numerics %s, weight version %" PRIu64 ", up %.0f s, %" PRIu64
              " live groups\n",
              status.model.empty() ? "-" : status.model.c_str(),
              status.numerics_profile.empty() ? "-" : status.numerics_profile.c_str(),
              status.weight_version, status.uptime_s, status.live_groups);
  print_weights(status.weights);
  std::printf("%-6s %-14s %-9s %8s %6s %8s %8s %19s %10s %12s\n", "worker", "name", "state", "pid",
              "epoch", "running", "waiting", "kv used/parked/all", "spilled", "tokens");
  for (const auto& w : status.workers) {
    const std::string kv = std::to_string(w.kv_blocks_used) + "/"
                           + std::to_string(w.kv_blocks_parked) + "/"
                           + std::to_string(w.kv_blocks_total);
    std::printf("%-6" PRIu64 " %-14s %-9s %8" PRIu64 " %6" PRIu64 " %8" PRIu64 " %8" PRIu64
                " %19s %10" PRIu64 " %12" PRIu64 "\n",
                w.worker.value, w.name.c_str(), w.state.c_str(), w.pid, w.epoch, w.running,
                w.waiting, kv.c_str(), w.kv_tokens_spilled, w.generated_tokens);
  }
  for (const auto& b : status.batches)
    std::printf("batch %s (%s): %" PRIu64 " of %" PRIu64 " finished, %" PRIu64 " running, %" PRIu64
                " waiting, %" PRIu64 " tokens\n",
                b.batch_key.c_str(), b.policy.c_str(), b.finished, b.responses, b.running,
                b.waiting, b.generated_tokens);
}

} // namespace

int run_status(const status_options& options) {
  catch_stop_signals();
  auto client = wire::controller_client::connect(options.connect, options.timeout, options.keys);
  if (!client)
    return refuse_contact(client.error());
  do {
    const auto status = client->status();
    if (!status)
      return refuse(status.error());
    if (options.watch)
      std::printf("\x1b[H\x1b[2J"); // home and clear
    if (options.json)
      std::printf("%s\n", json_of(*status).dump(2).c_str());
    else
      print_tables(*status);
    std::fflush(stdout);
    for (int tenth = 0; options.watch && tenth < 10 && !stop_requested(); ++tenth)
      std::this_thread::sleep_for(std::chrono::milliseconds{100});
  } while (options.watch && !stop_requested());
  return exit_done;
}

} // namespace rollcast::cli
