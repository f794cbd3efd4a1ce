#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/response_file.hpp"
#include "cluster/policy/mode_names.hpp"
#include "cluster/sim/report.hpp"
#include "cluster/sim/trace.hpp"

#include <fstream>
#include <iostream>
#include <sstream>

namespace rollcast::cli {

namespace {

using nlohmann::ordered_json;

result<void> write(const std::filesystem::path& path, const std::string& text) {
  if (path.empty()) {
    std::cout << text << std::flush;
    return {};
  }
  std::ofstream out{path};
  out << text;
  out.flush();
  if (!out)
    return fail(errc::io_failed, "cannot write " + path.string());
  return {};
}

result<void> export_trace(const simulate_options& options) {
  const auto records = read_responses(options.export_trace);
  if (!records)
    return fail(records);
  std::vector<sim::traced_response> responses;
  for (const auto& r : *records)
    if (!r.token_ids.empty()) // cancelled before its first token: nothing to schedule
      responses.push_back({r.group, r.index, static_cast<std::uint32_t>(r.prompt_token_ids.size()),
                           static_cast<std::uint32_t>(r.token_ids.size())});
  std::ostringstream text;
  sim::write_trace(text, responses);
  return write(options.out, text.str());
}

result<sim::cost_model> choose_model(const simulate_options& options, const std::string& fallback) {
  const auto& name = options.cost_model.empty() ? fallback : options.cost_model;
  const auto preset = sim::find_cost_model(name);
  auto model = preset ? result<sim::cost_model>{*preset} : sim::read_cost_model(name);
  if (!model)
    return model;
  model->workers = options.workers.value_or(model->workers);
  model->kv_blocks = options.kv_blocks.value_or(model->kv_blocks);
  if (options.migration_gbps)
    model->migration_bytes_per_s = *options.migration_gbps * 1e9 / 8;
  if (options.spill_gib && model->kv_bytes_per_token > 0)
    model->spill_tokens = (std::uint64_t{*options.spill_gib} << 30) / model->kv_bytes_per_token;
  return model;
}

/// The batch of one seed; a trace is the same for every seed.
class batches {
public:
  static result<batches> open(const simulate_options& options) {
    batches out;
    out.spec_ = sim::find_workload(options.workload);
    if (out.spec_) {
      out.spec_->variance_between = options.correlation.value_or(out.spec_->variance_between);
      return out;
    }
    if (options.correlation || options.seeds > 1)
      return fail(errc::bad_config,
                  "--workload " + options.workload
                    + " is a trace: --correlation and --seeds are for drawn workloads");
    auto trace = sim::read_trace(options.workload, options.tokens_max);
    if (!trace)
      return fail(trace);
    out.trace_ = std::move(*trace);
    return out;
  }

  bool drawn() const { return spec_.has_value(); }
  sim::workload at(std::uint64_t seed) const {
    return spec_ ? sim::draw_workload(*spec_, seed) : trace_;
  }

private:
  std::optional<sim::workload_spec> spec_;
  sim::workload trace_;
};

result<void> simulate(const simulate_options& options) {
  if (options.workload.empty())
    return fail(errc::bad_config, "--workload is missing: moonlight, qwen2-vl-72b, kimi-k2 or a "
                                  "trace file (see rollcast simulate --help)");
  if (options.policy != "context" && (options.oracle_groups || options.no_probe))
    return fail(errc::bad_config, std::string{options.no_probe ? "--no-probe" : "--oracle-groups"}
                                    + " is for --policy context, not " + options.policy
                                    + "; leave one of them out");
  const auto source = batches::open(options);
  if (!source)
    return fail(source);
  const auto model = choose_model(options, source->drawn() ? options.workload : "cpu");
  if (!model)
    return fail(model);
  sim::sim_options how;
  how.rules.how = *policy::find_mode(options.policy);
  how.rules.chunk_tokens = options.chunk_tokens;
  how.rules.probe_first = !options.no_probe;
  how.limits.reserve_tokens = options.reserve_tokens;
  how.oracle_groups = options.oracle_groups;
  how.speculate = *find_speculation(options.speculate);
  how.timeline = !options.plot.empty();
  std::vector<ordered_json> runs;
  for (std::uint32_t i = 0; i < options.seeds; ++i) {
    how.seed = options.seed + i;
    const auto batch = source->at(how.seed);
    const auto run = sim::simulate(batch, *model, how);
    if (!run)
      return fail(run);
    runs.push_back(sim::figures_of(batch, *run));
    if (how.timeline)
      if (auto ok = write(options.plot, sim::plot_svg(*run, batch.name + ", " + options.policy));
          !ok)
        return ok;
    how.timeline = false;
  }
  auto json = sim::mean_figures(runs);
  json["workload"] = options.workload;
  json["policy"] = options.policy;
  json["speculate"] = options.speculate;
  json["seed"] = options.seed;
  json["seeds"] = options.seeds;
  json["probe"] = !options.no_probe;
  json["oracle_groups"] = options.oracle_groups;
  json["chunk_tokens"] = options.chunk_tokens;
  json["reserve_tokens"] = options.reserve_tokens;
  json["cost_model"] = model->name;
  json["workers"] = model->workers;
  json["kv_blocks"] = model->kv_blocks;
  json["spill_tokens"] = model->spill_tokens;
  if (options.seeds > 1)
    json["runs"] = std::move(runs);
  return write(options.out, json.dump(2) + "\n");
}

} // namespace

int run_simulate(const simulate_options& options) {
  const auto ok = options.export_trace.empty() ? simulate(options) : export_trace(options);
  return ok ? exit_done : refuse(ok.error());
}

} // namespace rollcast::cli
