#include "cli/commands.hpp"
#include "cli/drafting.hpp"
#include "cli/exit_code.hpp"
#include "cli/prompt_file.hpp"
#include "engine/base/hash.hpp"
#include "engine/draft/measure_steps.hpp"
#include "engine/draft/speculator.hpp"
#include "engine/step/engine.hpp"
#include "engine/tokenizer/tokenizer.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// `rollcast bench drafters`: a model and a drafter's model for it, beside the other ways to draft:
// tokens a second and how many tokens a step brings, of the same rollout, in turn.

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr std::array<std::uint32_t, 4> batches{1, 4, 16, 64};

/// A way to draft, and the drafters that it takes: of a group, of a model, both or neither.
struct way {
  std::string name;
  std::shared_ptr<speculator> group = {};
  std::shared_ptr<model_drafter> model = {};
};

struct measured {
  double tokens_per_s = 0;
  double acceptance_length = 1; ///< Of responses with drafts.
  double draft_share = 0;       ///< Of the time.
};

double drafted_s(const way& how) {
  return how.group   ? how.group->figures().draft_seconds
         : how.model ? how.model->figures().seconds
                     : 0.0;
}

/// Runs all of the work, `batch` responses at once.
result<measured> roll_out(engine& sut, const std::vector<chunk_request>& work,
                          std::uint32_t group_size, const way& how, std::uint32_t batch) {
  if (how.group)
    sut.speculate(how.group);
  else
    sut.speculate(how.model);
  const auto before = sut.stats();
  const auto drafted_before = drafted_s(how);
  const auto begin = clock::now();
  std::size_t next = 0;
  while (next < work.size() || sut.has_work()) {
    for (; next < work.size() && sut.running() + sut.waiting() < batch; ++next) {
      const auto& request = work[next];
      if (how.group)
        how.group->follow(request.response, {1 + next / group_size}, false, request.tokens);
      if (auto admitted = sut.admit(request); !admitted)
        return fail(admitted);
    }
    sut.step();
  }
  const std::chrono::duration<double> spent = clock::now() - begin;
  if (how.group)
    how.group->forget_all();
  const auto& after = sut.stats();
  measured out;
  out.tokens_per_s =
    static_cast<double>(after.generated_tokens - before.generated_tokens) / spent.count();
  if (const auto verified = after.verifications - before.verifications; verified > 0)
    out.acceptance_length += static_cast<double>(after.accepted_tokens - before.accepted_tokens)
                             / static_cast<double>(verified);
  out.draft_share = (drafted_s(how) - drafted_before) / spent.count();
  return out;
}

result<std::vector<chunk_request>> read_work(const bench_drafters_options& options) {
  std::optional<tokenizer> words;
  if (std::filesystem::exists(options.device.model / "tokenizer.json")) {
    auto loaded = tokenizer::load(options.device.model / "tokenizer.json");
    if (!loaded)
      return fail(loaded);
    words = std::move(*loaded);
  }
  auto groups = read_prompts(options.prompts, {options.group_size, {}}, words ? &*words : nullptr);
  if (!groups)
    return fail(groups);
  std::vector<chunk_request> work;
  for (std::size_t g = 0; g < std::min<std::size_t>(groups->size(), options.groups); ++g)
    for (std::uint32_t i = 0; i < options.group_size; ++i) {
      chunk_request request;
      request.response = {work.size() + 1};
      request.tokens = (*groups)[g].prompt_token_ids;
      request.prompt_tokens = static_cast<std::uint32_t>(request.tokens.size());
      request.sampling.temperature = options.temperature;
      request.sampling.max_new_tokens = request.generate_max = options.max_new_tokens;
      request.sampling.seed = response_seed(1, g, i);
      work.push_back(std::move(request));
    }
  return work;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// All ways at all batch sizes, in alternation: a machine's speed drifts by more than what is
/// compared, so ratios are taken within a round.
result<ordered_json> measure(const bench_drafters_options& options, engine& sut,
                             const std::vector<chunk_request>& work, const std::vector<way>& ways) {
  ordered_json rates, ratios, lengths, shares;
  for (const auto batch : batches) {
    const auto key = std::to_string(batch);
    std::vector<std::vector<double>> per_s(ways.size()), to_off(ways.size());
    std::vector<measured> last(ways.size());
    for (const auto& w : ways) // `auto` learns once what pays, and then serves for days
      if (auto warm = roll_out(sut, work, options.group_size, w, batch); !warm)
        return fail(warm);
    for (std::uint32_t round = 0; round < options.repeats; ++round) {
      for (std::size_t turn = 0; turn < ways.size(); ++turn) {
        const auto w = (turn + round) % ways.size();
        auto one = roll_out(sut, work, options.group_size, ways[w], batch);
        if (!one)
          return fail(one);
        last[w] = *one;
        per_s[w].push_back(last[w].tokens_per_s);
      }
      for (std::size_t w = 0; w < ways.size(); ++w)
        to_off[w].push_back(per_s[w].back() / per_s[0].back());
    }
    for (std::size_t w = 0; w < ways.size(); ++w) {
      rates[ways[w].name][key] = median(per_s[w]);
      ratios[ways[w].name][key] = median(to_off[w]);
      lengths[ways[w].name][key] = last[w].acceptance_length;
      shares[ways[w].name][key] = last[w].draft_share;
    }
  }
  return ordered_json{{"tokens_per_s", rates},
                      {"ratio_to_off", ratios},
                      {"acceptance_length", lengths},
                      {"draft_share_of_time", shares}};
}

/// The way to draft with a model, and with it beside groups.
result<way> make_way(const device_options& options, const backend& device,
                     const std::shared_ptr<thread_pool>& pool, draft_noise noise,
                     const std::string& name) {
  auto model = open_drafter(options, device, pool, noise);
  if (!model)
    return fail(model);
  return way{name, nullptr, std::move(*model)};
}

result<ordered_json> run(const bench_drafters_options& options) {
  auto what = options.device;
  what.max_batch = batches.back();
  if (auto settled = settle_drafts(what); !settled)
    return fail(settled);
  if (what.speculate != "mtp" && what.speculate != "eagle3")
    return fail(errc::bad_config, "--speculate is " + what.speculate
                                    + ": give mtp or eagle3, whose model is compared");
  const auto work = read_work(options);
  if (!work)
    return fail(work);
  const auto pool = std::make_shared<thread_pool>(threads_of(what));
  auto device = open_device(what, pool);
  if (!device)
    return fail(device);
  std::vector<way> ways{{"off"}};
  for (const auto how : {speculation::self, speculation::group})
    ways.push_back(
      {std::string{to_string(how)}, std::make_shared<speculator>(speculation_options{.how = how})});
  ordered_json by_noise;
  std::vector<way> noises;
  for (const auto& [name, noise] :
       {std::pair{"shared", draft_noise::shared},
        std::pair{"independent", draft_noise::independent}, std::pair{"none", draft_noise::none}}) {
    auto made = make_way(what, **device, pool, noise, name);
    if (!made)
      return fail(made);
    noises.push_back(std::move(*made));
  }
  ways.push_back(noises[0]);
  ways.back().name = what.speculate;
  auto both = make_way(what, **device, pool, draft_noise::shared, "auto");
  if (!both)
    return fail(both);
  both->model->use_target((*device)->weights());
  const auto costs = measure_steps(**device);
  const auto passes = measure_steps(*both->model->model().device, both->model->model().width);
  both->group = std::make_shared<speculator>(speculation_options{.how = speculation::auto_}, costs);
  both->group->consider(std::exchange(both->model, nullptr), passes);
  ways.push_back(std::move(*both));
  engine sut{std::move(*device), limits_of(what)};
  auto json = measure(options, sut, *work, ways);
  if (!json)
    return fail(json);
  for (const auto& n : noises) {
    const auto one = roll_out(sut, *work, options.group_size, n, batches.back());
    if (!one)
      return fail(one);
    by_noise[n.name] = one->acceptance_length;
  }
  (*json)["acceptance_length_by_noise"] = std::move(by_noise);
  for (const auto& [name, table] :
       {std::pair{"step_costs", &costs}, std::pair{"pass_costs", &passes}})
    for (const auto& point : table->points())
      (*json)[name].push_back({{"rows", point.rows}, {"seconds", point.seconds}});
  (*json)["drafts"] = {
    {"steps", what.draft_steps}, {"topk", what.draft_topk}, {"tokens", what.draft_tokens}};
  (*json)["temperature"] = options.temperature;
  (*json)["responses"] = work->size();
  return json;
}

} // namespace

int run_bench_drafters(const bench_drafters_options& options) {
  std::ofstream file;
  if (!options.out.empty())
    file.open(options.out);
  if (!options.out.empty() && !file)
    return refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
  const auto json = run(options);
  if (!json)
    return refuse(json.error());
  auto& to = options.out.empty() ? std::cout : file;
  to << json->dump(2) << '\n';
  to.flush();
  return to ? exit_done : refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
}

} // namespace rollcast::cli
