#include "cli/bench_streams.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/response_file.hpp"
#include "engine/draft/suffix_index.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <vector>

// `rollcast bench draft`: what the suffix index of a group costs, and how often it is right. Costs
// are of made-up groups, visited in turn as a worker does, so that each one is cold in the caches.

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;
using tokens = std::vector<token_id>;

constexpr std::uint32_t draft_tokens = 8;
/// Chains of up to 8 tokens, however unlikely, so that a call is paid in full.
constexpr draft_shape chain{.tokens_max = draft_tokens, .branches_max = 1, .survival_min = 0};
/// The same budget, spent on the likeliest tokens wherever they are in the tree.
constexpr draft_shape tree_of(std::uint32_t width) {
  return {.tokens_max = draft_tokens, .branches_max = width, .survival_min = 0};
}
constexpr std::array<std::uint32_t, 3> widths{1, 2, 4};
/// Steps between two rounds of look-ups.
constexpr std::uint32_t round_every = 16;
constexpr std::array<std::size_t, 4> finished_siblings{0, 1, 3, 7};
/// Made-up groups that are replayed for the acceptance length.
constexpr std::size_t replayed_max = 4;

std::vector<group_tokens> make_groups(const bench_draft_options& options) {
  std::vector<group_tokens> out;
  for (std::uint64_t seed = 1; seed <= options.groups; ++seed)
    out.push_back(make_group(seed, options.responses, options.tokens));
  return out;
}

// -- costs --------------------------------------------------------------------

struct costs {
  double append_ns = 0;
  double speculate_ns = 0;
  double bytes = 0;
  double drafted = 0; ///< A call.
};

double ns_since(clock::time_point start) {
  return std::chrono::duration<double, std::nano>(clock::now() - start).count();
}

/// One token for each response of each group, over and over, and a look-up for each now and then.
costs measure(const std::vector<group_tokens>& groups, const bench_draft_options& options) {
  std::vector<suffix_index> index(groups.size());
  for (auto& x : index)
    for (std::uint32_t r = 0; r < options.responses; ++r)
      x.open();
  costs out;
  std::vector<draft_token> draft;
  double calls = 0;
  for (std::uint32_t t = 0; t < options.tokens; ++t) {
    const auto start = clock::now();
    for (std::uint32_t r = 0; r < options.responses; ++r)
      for (std::size_t g = 0; g < groups.size(); ++g)
        index[g].append(r, {&groups[g][r][t], 1});
    out.append_ns += ns_since(start);
    if ((t + 1) % round_every != 0)
      continue;
    const auto asked = clock::now();
    for (std::uint32_t r = 0; r < options.responses; ++r)
      for (auto& x : index) {
        x.speculate(r, chain, draft);
        out.drafted += static_cast<double>(draft.size());
      }
    out.speculate_ns += ns_since(asked);
    calls += static_cast<double>(options.responses * groups.size());
  }
  double stored = 0;
  for (const auto& x : index) {
    stored += static_cast<double>(x.tokens());
    out.bytes += static_cast<double>(x.bytes() + sizeof(suffix_index));
  }
  out.append_ns /= stored;
  out.bytes /= stored;
  out.speculate_ns /= std::max(calls, 1.0);
  out.drafted /= std::max(calls, 1.0);
  return out;
}

// -- acceptance ---------------------------------------------------------------

struct tally {
  double tokens = 0;
  double steps = 0;
  double length() const { return steps > 0 ? tokens / steps : 0; }
};

/// Length of the path of a draft that says what comes.
std::size_t right_path(const std::vector<draft_token>& draft, std::span<const token_id> comes) {
  std::size_t right = 0;
  std::int32_t node = -1;
  for (std::size_t i = 0; i < draft.size() && right < comes.size(); ++i)
    if (draft[i].parent == node && draft[i].token == comes[right]) {
      node = static_cast<std::int32_t>(i); // its children come behind it
      ++right;
    }
  return right;
}

/// One step of a stream that will say `said` and is at `done`: a draft, what of it is right, and
/// the token that the step makes anyway.
void step(suffix_index& index, std::uint32_t stream, std::uint32_t width, const tokens& said,
          std::size_t& done, tally& sum) {
  std::vector<draft_token> draft;
  index.speculate(stream, tree_of(width), draft);
  const auto right = right_path(draft, std::span{said}.subspan(done));
  const auto made = std::min(right + 1, said.size() - done);
  index.append(stream, {said.data() + done, made});
  done += made;
  sum.tokens += static_cast<double>(made);
  sum.steps += 1;
}

/// Each response in turn, beside `siblings` that have ended.
void replay_beside(const group_tokens& group, std::size_t siblings, std::uint32_t width,
                   tally& sum) {
  for (std::size_t r = 0; r < group.size(); ++r) {
    suffix_index index;
    for (std::size_t k = 1; k <= std::min(siblings, group.size() - 1); ++k)
      index.append(index.open(), group[(r + k) % group.size()]);
    const auto stream = index.open();
    for (std::size_t done = 0; done < group[r].size();)
      step(index, stream, width, group[r], done, sum);
  }
}

/// All at once, a step each in turn.
void replay_together(const group_tokens& group, std::uint32_t width, tally& sum) {
  suffix_index index;
  std::vector<std::size_t> done(group.size());
  for (std::size_t r = 0; r < group.size(); ++r)
    index.open();
  for (bool live = true; live;) {
    live = false;
    for (std::uint32_t r = 0; r < group.size(); ++r)
      if (done[r] < group[r].size()) {
        live = true;
        step(index, r, width, group[r], done[r], sum);
      }
  }
}

/// Of trees with so many children at a fork: by finished siblings, and in lock step.
ordered_json acceptance_of(const std::vector<group_tokens>& groups, std::uint32_t width) {
  ordered_json by_siblings;
  for (const auto siblings : finished_siblings) {
    tally sum;
    for (const auto& group : groups)
      replay_beside(group, siblings, width, sum);
    by_siblings[std::to_string(siblings)] = sum.length();
  }
  tally together;
  for (const auto& group : groups)
    replay_together(group, width, together);
  return {{"group", by_siblings}, {"group_in_lock_step", together.length()}};
}

ordered_json acceptance(const std::vector<group_tokens>& groups, const std::string& source) {
  ordered_json by_width;
  for (const auto width : widths)
    by_width[std::to_string(width)] = acceptance_of(groups, width);
  const auto& chains = by_width["1"];
  return {{"self", chains["group"]["0"]},
          {"group", chains["group"]},
          {"group_in_lock_step", chains["group_in_lock_step"]},
          {"by_width", by_width},
          {"source", source}};
}

result<std::vector<group_tokens>> read_groups(const std::filesystem::path& path) {
  auto records = read_responses(path);
  if (!records)
    return tl::unexpected(records.error());
  std::map<std::uint64_t, group_tokens> groups;
  for (auto& record : *records)
    groups[record.group].push_back(std::move(record.token_ids));
  std::vector<group_tokens> out;
  for (auto& [id, group] : groups)
    out.push_back(std::move(group));
  return out;
}

} // namespace

int run_bench_draft(const bench_draft_options& options) {
  auto groups = make_groups(options);
  const auto cost = measure(groups, options);
  std::string source = "made up";
  groups.resize(std::min(groups.size(), replayed_max));
  if (!options.responses_file.empty()) {
    auto read = read_groups(options.responses_file);
    if (!read)
      return refuse(read.error());
    groups = std::move(*read);
    source = options.responses_file.string();
  }
  const ordered_json json{{"append_ns_per_token", cost.append_ns},
                          {"speculate_ns_per_call", cost.speculate_ns},
                          {"bytes_per_token", cost.bytes},
                          {"drafted_per_call", cost.drafted},
                          {"groups", options.groups},
                          {"responses", options.responses},
                          {"tokens", options.tokens},
                          {"acceptance_length", acceptance(groups, source)}};
  if (options.out.empty()) {
    std::printf("%s\n", json.dump(2).c_str());
    return exit_done;
  }
  std::ofstream out{options.out};
  out << json.dump(2) << '\n';
  out.flush();
  return out ? exit_done : refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
}

} // namespace rollcast::cli
