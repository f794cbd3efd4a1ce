#include "cli/bench_model.hpp"
#include "cli/bench_streams.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/response_file.hpp"
#include "engine/backend/forwarding_backend.hpp"
#include "engine/draft/measure_steps.hpp"
#include "engine/draft/speculator.hpp"
#include "engine/step/engine.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

// `rollcast bench speculation`: tokens a second of the real engine with each way of drafting, in
// turn. The model has random weights, so nothing that it would say could be drafted; it is made to
// say recorded streams instead. Every pass is computed in full, the sampling too.

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr std::array<std::uint32_t, 4> batches{1, 4, 16, 64};
/// Rounds of each for one repeat: small batches are short, and say most of the group they run.
constexpr std::array<std::uint32_t, 4> rounds_of{8, 6, 5, 4};
constexpr std::array<speculation, 4> modes{speculation::off, speculation::self, speculation::group,
                                           speculation::auto_};
constexpr std::uint32_t group_size = 8;
constexpr std::uint32_t prompt_tokens = 64;
constexpr std::uint32_t stream_tokens = 256; ///< Prompt included.

/// A response to replay: its group, and all tokens that it will have.
struct replayed {
  group_id group;
  std::vector<token_id> tokens;
};

/// A device that computes and samples as it would, and then says what was recorded. The seed of a
/// response names its stream.
class replaying_backend final : public forwarding_backend {
public:
  replaying_backend(std::unique_ptr<backend> inner, const std::vector<replayed>& streams)
    : forwarding_backend(std::move(inner)), streams_(streams) {}

  std::span<const token_id> eos_token_ids() const noexcept override { return {}; }
  void sample(std::span<const kernels::sample_params> how,
              std::span<kernels::sampled_token> out) override {
    inner_->sample(how, out);
    for (std::size_t i = 0; i < how.size(); ++i) {
      const auto& tokens = streams_[how[i].seed].tokens;
      out[i].token = tokens[std::min<std::size_t>(how[i].position, tokens.size() - 1)];
    }
  }

private:
  const std::vector<replayed>& streams_;
};

struct measured {
  double tokens_per_s = 0;
  double acceptance_length = 0; ///< Of responses with drafts; 0 without any.
};

/// Replays `batch` responses from their prompts on. Of a group that runs only in part the others
/// have ended, as in the tail of a rollout.
measured replay(engine& sut, const std::vector<replayed>& streams, speculation how,
                std::uint32_t draft_width, const step_costs& costs, std::uint32_t batch,
                std::size_t first = 0) {
  std::shared_ptr<speculator> drafts;
  if (how != speculation::off)
    drafts = std::make_shared<speculator>(
      speculation_options{.how = how, .tree_width = draft_width}, costs);
  sut.speculate(drafts);
  const auto groups = (batch + group_size - 1) / group_size;
  for (std::uint32_t i = 0; i < groups * group_size; ++i) {
    const auto at = (first + i) % streams.size();
    const auto& stream = streams[at];
    const std::span<const token_id> all{stream.tokens};
    const response_id id{i + 1ull};
    // Members are dealt out group by group, so that every group has as many running.
    const bool runs = i % group_size < batch / groups;
    if (drafts)
      drafts->follow(id, stream.group, false, runs ? all.first(prompt_tokens) : all);
    if (!runs)
      continue;
    chunk_request request;
    request.response = id;
    request.tokens.assign(all.begin(), all.begin() + prompt_tokens);
    request.prompt_tokens = prompt_tokens;
    request.sampling.seed = at;
    request.sampling.max_new_tokens = static_cast<std::uint32_t>(all.size()) - prompt_tokens;
    request.sampling.ignore_eos = true;
    request.generate_max = request.sampling.max_new_tokens;
    if (!sut.admit(std::move(request)))
      return {};
  }
  while (sut.waiting() > 0 || sut.stats().generated_tokens == 0)
    sut.step();
  const auto before = sut.stats();
  const auto begin = clock::now();
  // Until the first ends: from there on the batch is smaller.
  while (sut.running() == batch)
    sut.step();
  const std::chrono::duration<double> spent = clock::now() - begin;
  const auto after = sut.stats();
  for (std::uint32_t i = 0; i < groups * group_size; ++i)
    sut.release({i + 1ull});
  measured out;
  out.tokens_per_s =
    static_cast<double>(after.generated_tokens - before.generated_tokens) / spent.count();
  if (const auto verified = after.verifications - before.verifications; verified > 0)
    out.acceptance_length = 1
                            + static_cast<double>(after.accepted_tokens - before.accepted_tokens)
                                / static_cast<double>(verified);
  return out;
}

result<std::vector<replayed>> read_streams(const std::filesystem::path& path) {
  std::vector<replayed> out;
  const auto needed = batches.back() / group_size;
  if (path.empty()) {
    for (std::uint64_t g = 0; g < needed; ++g)
      for (auto& tokens : make_group(g + 1, group_size, stream_tokens))
        out.push_back({{g + 1}, std::move(tokens)});
    return out;
  }
  const auto records = read_responses(path);
  if (!records)
    return fail(records);
  std::map<std::uint64_t, std::vector<replayed>> groups;
  for (const auto& r : *records) {
    if (r.token_ids.size() < stream_tokens)
      continue;
    std::vector<token_id> tokens{r.token_ids.begin(), r.token_ids.begin() + stream_tokens};
    groups[r.group].push_back({{r.group + 1ull}, std::move(tokens)});
  }
  for (auto& [id, members] : groups)
    if (members.size() >= group_size && out.size() < needed * group_size)
      out.insert(out.end(), members.begin(), members.begin() + group_size);
  if (out.size() < needed * group_size)
    return fail(errc::bad_config, path.string() + " has " + std::to_string(out.size() / group_size)
                                    + " groups of 8 responses of " + std::to_string(stream_tokens)
                                    + " tokens, needed are " + std::to_string(needed)
                                    + ": roll out longer ones, or leave --responses-file out");
  for (const auto& stream : out)
    for (const auto token : stream.tokens)
      if (token < 0 || static_cast<std::size_t>(token) >= bench_config().vocabulary)
        return fail(errc::bad_config, path.string() + " has token " + std::to_string(token)
                                        + ", the model's vocabulary ends at "
                                        + std::to_string(bench_config().vocabulary));
  return out;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// All modes at all batch sizes, in alternation; medians. A machine's speed drifts by more than
/// what is compared, so ratios are taken within a round. Each round begins with another group.
ordered_json measure(const bench_speculation_options& options, engine& sut,
                     const std::vector<replayed>& streams, const step_costs& costs) {
  ordered_json json, lengths, ratios;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    const auto batch = batches[b];
    std::array<std::vector<double>, modes.size()> rates;
    std::array<double, modes.size()> length{};
    (void)replay(sut, streams, speculation::off, 1, costs, batch); // warm up
    const auto rounds = options.repeats * rounds_of[b];
    for (std::uint32_t repeat = 0; repeat < rounds; ++repeat)
      for (std::size_t turn = 0; turn < modes.size(); ++turn) {
        const auto m = (turn + repeat) % modes.size();
        const auto got = replay(sut, streams, modes[m], options.draft_width, costs, batch,
                                std::size_t{repeat} * group_size);
        rates[m].push_back(got.tokens_per_s);
        length[m] += got.acceptance_length / rounds;
      }
    for (std::size_t m = 0; m < modes.size(); ++m) {
      const std::string name{to_string(modes[m])};
      json[name][std::to_string(batch)] = median(rates[m]);
      lengths[name][std::to_string(batch)] = length[m];
      std::vector<double> to_off;
      for (std::uint32_t round = 0; round < rounds; ++round)
        to_off.push_back(rates[m][round] / rates[0][round]);
      ratios[name][std::to_string(batch)] = median(std::move(to_off));
    }
  }
  json["ratio_to_off"] = std::move(ratios);
  json["acceptance_length"] = std::move(lengths);
  return json;
}

} // namespace

int run_bench_speculation(const bench_speculation_options& options) {
  std::ofstream file;
  if (!options.out.empty())
    file.open(options.out);
  if (!options.out.empty() && !file)
    return refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
  const auto streams = read_streams(options.responses_file);
  if (!streams)
    return refuse(streams.error());
  const auto model = bench_model::make();
  if (!model)
    return refuse(model.error());
  device_options device;
  device.model = model->path();
  device.numerics = options.numerics;
  device.threads = options.threads;
  device.speculate = "group";
  device.kv_blocks = batches.back() * stream_tokens / device.block_tokens;
  auto opened = open_device(device);
  if (!opened)
    return refuse(opened.error());
  const auto costs = measure_steps(**opened);
  engine sut{std::make_unique<replaying_backend>(std::move(*opened), *streams), limits_of(device)};
  auto json = measure(options, sut, *streams, costs);
  ordered_json table = ordered_json::array();
  for (const auto& point : costs.points())
    table.push_back({{"rows", point.rows}, {"seconds", point.seconds}});
  json["step_costs"] = std::move(table);
  json["numerics"] = options.numerics;
  json["streams"] = options.responses_file.empty() ? "made up" : options.responses_file.string();
  json["repeats"] = options.repeats;
  json["draft_width"] = options.draft_width;
  auto& to = options.out.empty() ? std::cout : file;
  to << json.dump(2) << '\n';
  to.flush();
  return to ? exit_done : refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
}

} // namespace rollcast::cli
