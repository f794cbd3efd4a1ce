#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/local_cluster.hpp"
#include "cli/local_launch.hpp"
#include "cli/prompt_file.hpp"
#include "cli/stop_signal.hpp"
#include "cluster/wire/client.hpp"
#include "cluster/wire/validate.hpp"
#include "engine/model/config.hpp"
#include "engine/tokenizer/tokenizer.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// `rollcast bench policies`: the same batch on the same cluster, again and again, with `static` and
// `context` in turn. What it prints is real time on this machine; the responses must not differ.

namespace rollcast::cli {

namespace {

using nlohmann::ordered_json;

constexpr std::array<const char*, 2> policies{"static", "context"};
constexpr std::chrono::milliseconds silence_max{10'000};

/// What a batch gave: responses by sequence of (group, index), and its figures.
struct outcome {
  std::vector<wire::response_ready> responses;
  wire::batch_summary summary;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size()
         && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

/// Submits a batch and waits for all of it.
result<outcome> run_batch(wire::controller_client& client, local_cluster& cluster,
                          const wire::submit_batch& batch) {
  const auto accepted = client.submit(batch);
  if (!accepted)
    return fail(accepted);
  outcome out;
  std::uint64_t last = 0;
  std::optional<std::uint64_t> resumed_after; // asked once for each gap, however much comes behind
  for (;;) {
    const auto event = client.next_event(silence_max);
    if (auto alive = cluster.supervise(); !alive)
      return fail(alive);
    if (stop_requested())
      return fail(errc::cancelled, "stopped");
    if (!event && event.error().code != errc::timed_out)
      return fail(event);
    const auto* ready = event ? std::get_if<wire::response_ready>(&*event) : nullptr;
    const auto* done = event ? std::get_if<wire::batch_done>(&*event) : nullptr;
    if (const auto* failed = event ? std::get_if<wire::request_failed>(&*event) : nullptr)
      return fail(failed->code, failed->message);
    const auto sequence = ready ? ready->sequence : done ? done->sequence : 0;
    if (sequence != last + 1) { // silence, or something was lost on the way
      if (sequence == 0 || (sequence > last && resumed_after != last)) {
        if (const auto again = client.resume(batch.batch_key, last); !again)
          return fail(again);
        resumed_after = last;
      }
      continue;
    }
    last = sequence;
    if (auto ok = client.ack(batch.batch_key, last); !ok)
      return fail(ok);
    if (ready != nullptr) {
      out.responses.push_back(*ready);
      continue;
    }
    out.summary = done->summary;
    std::sort(out.responses.begin(), out.responses.end(), [](const auto& a, const auto& b) {
      return std::pair{a.group, a.index} < std::pair{b.group, b.index};
    });
    return out;
  }
}

/// Where two runs of the same batch differ, or nothing.
std::optional<std::string> difference(const outcome& a, const outcome& b) {
  if (a.responses.size() != b.responses.size())
    return std::to_string(b.responses.size()) + " responses, not "
           + std::to_string(a.responses.size());
  for (std::size_t i = 0; i < a.responses.size(); ++i) {
    const auto& x = a.responses[i];
    const auto& y = b.responses[i];
    if (x.token_ids != y.token_ids || x.reason != y.reason || !same_bits(x.logprobs, y.logprobs)
        || !same_bits(x.kept_mass, y.kept_mass))
      return "group " + std::to_string(x.group) + ", index " + std::to_string(x.index);
  }
  return std::nullopt;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

ordered_json figures_of(const wire::batch_summary& s) {
  return {{"policy", s.policy},
          {"makespan_s", s.makespan_s},
          {"tail_s", s.tail_s},
          {"tokens_per_s", s.tokens_per_s},
          {"worker_idle_fraction", s.worker_idle_fraction},
          {"chunks", s.chunks},
          {"migrations", s.migrations},
          {"recomputed_tokens", s.recomputed_tokens},
          {"preemptions", s.preemptions}};
}

struct series {
  std::array<std::vector<double>, 2> makespans; ///< By place in `policies`.
  std::array<std::vector<double>, 2> tails;
  ordered_json runs = ordered_json::array();
};

/// Runs both policies `repeats` times; who goes first changes each time.
result<series> alternate(const bench_policies_options& options, wire::controller_client& client,
                         local_cluster& cluster, wire::submit_batch batch) {
  series out;
  std::optional<outcome> first;
  for (std::uint32_t repeat = 0; repeat < options.repeats; ++repeat)
    for (std::size_t turn = 0; turn < policies.size(); ++turn) {
      const auto which = (turn + repeat) % policies.size();
      batch.policy = policies[which];
      batch.batch_key = std::string{policies[which]} + "-" + std::to_string(repeat);
      auto got = run_batch(client, cluster, batch);
      if (!got)
        return fail(got);
      if (got->summary.workers.size() != options.cluster.workers)
        return fail(errc::peer_lost,
                    "run " + batch.batch_key + " had " + std::to_string(got->summary.workers.size())
                      + " workers in turn, not " + std::to_string(options.cluster.workers)
                      + ": one was lost, so its time says nothing; run again");
      if (first)
        if (const auto where = difference(*first, *got))
          return fail(errc::numerics_mismatch,
                      "run " + batch.batch_key + " differs from the first run: " + *where);
      out.makespans[which].push_back(got->summary.makespan_s);
      out.tails[which].push_back(got->summary.tail_s);
      out.runs.push_back(figures_of(got->summary));
      if (!first)
        first = std::move(*got);
    }
  return out;
}

result<wire::submit_batch> batch_of(const bench_policies_options& options) {
  if (const auto config = load_config(options.cluster.device.model); !config)
    return fail(config);
  auto words = tokenizer::load(options.cluster.device.model / "tokenizer.json");
  wire::submit_batch batch;
  batch.batch_key = "first";
  batch.sampling.max_new_tokens = options.max_new_tokens;
  batch.seed = options.seed;
  batch.chunk_tokens = options.chunk_tokens;
  auto groups =
    read_prompts(options.prompts, {options.group_size, batch.sampling}, words ? &*words : nullptr);
  if (!groups)
    return fail(groups);
  batch.groups = std::move(*groups);
  if (auto ok = wire::validate(batch); !ok)
    return fail(ok);
  return batch;
}

int print(const bench_policies_options& options, const wire::submit_batch& batch, const series& all,
          std::ostream& to) {
  const auto ratio = [](const auto& of) { // none over a tail of no time
    const auto context = median(of[1]);
    return context > 0 ? ordered_json(median(of[0]) / context) : ordered_json{};
  };
  std::uint64_t responses = 0;
  for (const auto& group : batch.groups)
    responses += group.group_size;
  const ordered_json json{
    {"makespan_ratio", ratio(all.makespans)},
    {"tail_ratio", ratio(all.tails)},
    {"identical", true},
    {"workers", options.cluster.workers},
    {"kv_blocks", options.cluster.device.kv_blocks},
    {"max_batch", options.cluster.device.max_batch},
    {"threads", options.cluster.device.threads},
    {"responses", responses},
    {"group_size", options.group_size},
    {"max_new_tokens", options.max_new_tokens},
    {"seed", options.seed},
    {"chunk_tokens", batch.chunk_tokens.value_or(options.cluster.scheduler.chunk_tokens)},
    {"repeats", options.repeats},
    {"runs", all.runs}};
  to << json.dump(2) << '\n';
  to.flush();
  return to ? exit_done : refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
}

} // namespace

int run_bench_policies(const bench_policies_options& options) {
  catch_stop_signals();
  const auto batch = batch_of(options);
  if (!batch)
    return refuse(batch.error());
  std::ofstream file;
  if (!options.out.empty())
    file.open(options.out); // now, not after minutes of runs
  if (!options.out.empty() && !file)
    return refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
  auto cluster = launch(options.cluster, false);
  if (!cluster)
    return refuse(cluster.error());
  auto client = wire::controller_client::connect(cluster->endpoint(), silence_max);
  if (!client)
    return refuse(client.error());
  const auto all = alternate(options, *client, *cluster, *batch);
  if (!all) {
    (void)refuse(all.error());
    return all.error().code == errc::numerics_mismatch ? exit_check_failed
                                                       : exit_code_of(all.error());
  }
  return print(options, *batch, *all, options.out.empty() ? std::cout : file);
}

} // namespace rollcast::cli
