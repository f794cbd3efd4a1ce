#include "cli/bench_model.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/local_cluster.hpp"
#include "cli/local_launch.hpp"
#include "cli/stop_signal.hpp"
#include "cli/zeromq_receivers.hpp"
#include "cluster/wire/client.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

// `rollcast bench weights`: a running cluster is given one checkpoint of the 100 M model and
// another, in turn; before each, ZeroMQ alone sends as many bytes over loopback to as many
// receivers: processes, as the workers are, and threads of this one.

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr std::chrono::minutes update_timeout{5};

double seconds_since(clock::time_point begin) {
  return std::chrono::duration<double>(clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// The updates of a series, and what ZeroMQ alone did before each.
struct series {
  std::vector<double> rates, raw, raw_in_process, ratios, pauses;
  ordered_json updates = ordered_json::array();
};

result<series> alternate(wire::controller_client& client, const std::array<bench_model, 2>& models,
                         std::uint32_t rounds, const zeromq_receivers& receivers,
                         std::uint32_t workers) {
  series out;
  std::uint64_t bytes = std::uint64_t{190} << 20; // of the first; then what the last one had
  for (std::uint32_t i = 0; i < rounds; ++i) {
    if (stop_requested())
      return fail(errc::cancelled, "stopped by the user");
    const auto raw = receivers.rate(bytes);
    if (!raw)
      return fail(raw);
    out.raw_in_process.push_back(zeromq_rate_in_process(bytes, workers));
    wire::load_weights load;
    load.directory = models[(i + 1) % 2].path().string();
    const auto begin = clock::now();
    const auto served = client.load_weights(load, update_timeout);
    if (!served)
      return fail(served);
    bytes = served->bytes;
    ordered_json phases;
    double distributing = 0;
    for (const auto& p : served->phases) {
      phases[p.phase] = p.seconds;
      distributing += p.phase == "distributing" ? p.seconds : 0;
    }
    out.raw.push_back(*raw);
    out.rates.push_back(static_cast<double>(bytes * workers) / distributing);
    out.ratios.push_back(out.rates.back() / *raw);
    out.pauses.push_back(served->pause_s);
    out.updates.push_back({{"seconds", seconds_since(begin)},
                           {"phases", std::move(phases)},
                           {"pause_s", served->pause_s},
                           {"bytes_per_s", out.rates.back()},
                           {"zeromq_bytes_per_s", *raw},
                           {"zeromq_in_process_bytes_per_s", out.raw_in_process.back()}});
  }
  return out;
}

} // namespace

int run_bench_weights(const bench_weights_options& options) {
  catch_stop_signals();
  std::ofstream file;
  if (!options.out.empty())
    file.open(options.out);
  if (!options.out.empty() && !file)
    return refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
  const auto receivers = zeromq_receivers::start(options.workers); // before any thread
  if (!receivers)
    return refuse(receivers.error());
  auto first = bench_model::make(1);
  auto second = first ? bench_model::make(2) : result<bench_model>{fail(first)};
  if (!second)
    return refuse(second.error());
  const std::array<bench_model, 2> models{std::move(*first), std::move(*second)};
  cluster_options cluster_wanted;
  cluster_wanted.device.model = models[0].path();
  cluster_wanted.device.numerics = options.numerics;
  cluster_wanted.device.threads = 1;
  cluster_wanted.device.kv_blocks = 64;
  cluster_wanted.workers = options.workers;
  auto cluster = launch(cluster_wanted, false);
  if (!cluster)
    return refuse(cluster.error());
  auto client =
    wire::controller_client::connect(cluster->endpoint(), std::chrono::milliseconds{10'000});
  if (!client)
    return refuse(client.error());
  const auto all = alternate(*client, models, options.repeats, *receivers, options.workers);
  if (!all)
    return refuse(all.error());
  const ordered_json json{
    {"bytes_per_s", median(all->rates)},
    {"zeromq_bytes_per_s", median(all->raw)},
    {"zeromq_in_process_bytes_per_s", median(all->raw_in_process)},
    {"ratio_to_zeromq", median(all->ratios)},
    {"ratio_to_zeromq_in_process", median(all->rates) / median(all->raw_in_process)},
    {"pause_s_max", *std::max_element(all->pauses.begin(), all->pauses.end())},
    {"workers", options.workers},
    {"numerics", options.numerics},
    {"updates", all->updates}};
  auto& to = options.out.empty() ? std::cout : file;
  to << json.dump(2) << '\n';
  to.flush();
  return to ? exit_done : refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
}

} // namespace rollcast::cli
