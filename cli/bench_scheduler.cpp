#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cluster/policy/scheduler_policy.hpp"
#include "engine/base/check.hpp"
#include "engine/base/prng.hpp"

#include <malloc.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

// `rollcast bench scheduler`: the policy alone, one core, against pretend workers that finish
// chunks in random order. Only calls of the policy are timed; the pretending is not.

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;
using namespace policy;

constexpr std::uint32_t group_size = 16;
constexpr std::uint32_t chunk_tokens = group_rules{}.chunk_tokens;
constexpr std::uint32_t tokens_max = 65536;
constexpr std::uint32_t slots = 64;
constexpr std::uint32_t block_tokens = 16;
constexpr std::uint32_t kv_bytes_per_token = 100'000;
/// Of one worker: all that waits and runs fits beside each other / about a sixth of it does.
constexpr std::uint32_t ample_blocks = 131072;
constexpr std::uint32_t scarce_blocks = 8192;
constexpr std::size_t round_events = 1024; ///< Chunk ends between two looks at the clock.

/// Bytes that the heap has given out.
std::size_t heap_bytes() {
  const auto info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// Length of a member: siblings are alike, groups are not; most are short, a few reach the limit.
/// The mean is about 8,000 tokens.
std::uint32_t draw_length(prng& random, std::uint32_t typical) {
  const auto percent = 50 + random.below(101);
  return static_cast<std::uint32_t>(
    std::clamp<std::uint64_t>(typical * percent / 100, 1, tokens_max));
}

std::uint32_t draw_typical(prng& random) {
  const auto scale = random.below(10) == 0 ? 65536u : 10000u;
  return static_cast<std::uint32_t>(256 + random.below(scale));
}

/// A cluster with `responses` live ones at all times: when some have ended a new group comes. Ids
/// say where a response is kept here: group = lap * places + place + 1, response = group * size +
/// index.
class crowd {
public:
  crowd(const bench_scheduler_options& options, std::uint32_t kv_blocks);
  /// Plans until nothing is left to decide. @returns seconds spent.
  double fill();
  /// Ends `round_events` chunks, with a plan after each. @returns seconds spent in the policy.
  double round();
  std::uint64_t decisions() const { return decisions_; }
  /// Heap of the pretending.
  std::size_t own_bytes() const {
    return groups_.capacity() * sizeof(bench_group) + free_.capacity() * sizeof(std::size_t)
           + running_.capacity() * sizeof(dispatch) + news_.capacity() * sizeof(event);
  }
  const scheduler_policy& policy() const { return policy_; }

private:
  struct seat {
    std::uint32_t length = 0;
    std::uint32_t done = 0;
  };
  struct bench_group {
    std::uint64_t id = 0;
    std::uint32_t live = 0;
    std::array<seat, group_size> seats;
  };

  void open(bool under_way);
  void prepare();
  void finish(const dispatch& d);
  void tell(const event& e) { ROLLCAST_CHECK(policy_.on(e) == verdict::accepted); }
  void take(const std::vector<decision>& decided);

  prng random_{1};
  const std::size_t responses_;
  std::vector<bench_group> groups_; ///< Twice what lives: one that ended waits for its siblings.
  std::vector<std::size_t> free_;
  std::size_t live_ = 0;
  std::vector<dispatch> running_;
  std::vector<event> news_;
  std::vector<std::vector<decision>> answers_;
  std::uint64_t decisions_ = 0;
  scheduler_policy policy_;
};

std::size_t groups_for(const bench_scheduler_options& options) {
  // A group stays while one of it lives, so there are at most as many as responses.
  return std::size_t{options.responses} + group_size;
}

policy_limits bench_limits(const bench_scheduler_options& options) {
  policy_limits limits;
  limits.rules.chunk_tokens = chunk_tokens;
  limits.responses_max = static_cast<std::uint32_t>(groups_for(options) * group_size);
  limits.workers_max = options.workers;
  return limits;
}

crowd::crowd(const bench_scheduler_options& options, std::uint32_t kv_blocks)
  : responses_(options.responses), groups_(groups_for(options)), policy_(bench_limits(options)) {
  running_.reserve(std::size_t{options.workers} * slots);
  for (auto place = groups_.size(); place-- > 0;) {
    groups_[place].id = place + 1;
    free_.push_back(place);
  }
  for (std::uint64_t w = 1; w <= options.workers; ++w)
    tell(worker_joined{worker_id{w}, kv_blocks, block_tokens, slots, kv_bytes_per_token});
  while (live_ < responses_) {
    open(true);
    for (const auto& e : news_)
      tell(e);
    news_.clear();
  }
}

void crowd::open(bool under_way) {
  ROLLCAST_CHECK(!free_.empty());
  auto& g = groups_[free_.back()];
  free_.pop_back();
  g.live = group_size;
  live_ += group_size;
  const auto prompt = static_cast<std::uint32_t>(100 + random_.below(900));
  const auto typical = draw_typical(random_);
  for (std::uint32_t i = 0; i < group_size; ++i) {
    auto& s = g.seats[i];
    s.length = draw_length(random_, typical);
    // The first crowd is caught in the middle of its work, as a journal would bring it back.
    const auto chunks = under_way ? random_.below((s.length - 1) / chunk_tokens + 1) : 0;
    s.done = static_cast<std::uint32_t>(chunks) * chunk_tokens;
    news_.push_back(response_submitted{
      response_id{g.id * group_size + i}, group_id{g.id}, i, prompt, tokens_max, s.done, {}});
  }
}

void crowd::take(const std::vector<decision>& decided) {
  decisions_ += decided.size();
  for (const auto& d : decided)
    if (const auto* started = std::get_if<dispatch>(&d))
      running_.push_back(*started);
}

double crowd::fill() {
  double seconds = 0;
  for (;;) {
    const auto start = clock::now();
    const auto decided = policy_.plan();
    seconds += std::chrono::duration<double>(clock::now() - start).count();
    if (decided.empty())
      return seconds;
    take(decided);
  }
}

void crowd::finish(const dispatch& d) {
  if (d.kv == kv_source::pull)
    news_.push_back(kv_moved{d.response, d.worker, d.attempt});
  const auto place = (d.response.value / group_size - 1) % groups_.size();
  auto& g = groups_[place];
  auto& s = g.seats[d.response.value % group_size];
  s.done = std::min(s.length, s.done + d.tokens_now);
  const auto complete = s.done == s.length;
  news_.push_back(chunk_finished{d.response, d.worker, d.attempt, s.done, complete, !complete});
  if (!complete)
    return;
  --live_;
  if (--g.live == 0) {
    news_.push_back(group_closed{group_id{g.id}});
    g.id += groups_.size();
    free_.push_back(place);
  }
  if (live_ + group_size <= responses_)
    open(false);
}

void crowd::prepare() {
  news_.clear();
  for (std::size_t i = 0; i < round_events && !running_.empty(); ++i) {
    const auto k = random_.below(running_.size());
    std::swap(running_[k], running_.back());
    const auto ended = running_.back();
    running_.pop_back();
    finish(ended);
  }
}

double crowd::round() {
  prepare();
  answers_.clear();
  const auto start = clock::now();
  for (const auto& e : news_) {
    tell(e);
    if (std::holds_alternative<chunk_finished>(e))
      answers_.push_back(policy_.plan());
  }
  const std::chrono::duration<double> spent = clock::now() - start;
  for (const auto& decided : answers_)
    take(decided);
  return spent.count();
}

struct figures {
  double decisions_per_s = 0;
  double dispatches_per_s = 0;
  double first_fill_per_s = 0;
  double bytes_per_response = 0;
  ordered_json all;
};

figures measure(const bench_scheduler_options& options, std::uint32_t kv_blocks) {
  const auto heap_before = heap_bytes();
  const auto sut = std::make_unique<crowd>(options, kv_blocks);
  const auto filling = sut->fill();
  const auto& now = sut->policy().counters();
  const auto filled = now.dispatches;
  // Half a turn of the crowd, so that nothing is measured that only a fresh crowd does.
  for (std::uint64_t ended = 0; ended < options.responses / 2; ended += round_events)
    sut->round();
  const auto before = now;
  const auto decisions_before = sut->decisions();
  double seconds = 0;
  while (seconds < options.seconds)
    seconds += sut->round();
  const auto bytes = heap_bytes() - heap_before - sut->own_bytes();
  figures out;
  out.decisions_per_s = static_cast<double>(sut->decisions() - decisions_before) / seconds;
  out.dispatches_per_s = static_cast<double>(now.dispatches - before.dispatches) / seconds;
  out.first_fill_per_s = static_cast<double>(filled) / filling;
  out.bytes_per_response = static_cast<double>(bytes) / options.responses;
  out.all = {{"steady_per_s", out.decisions_per_s},
             {"steady_dispatches_per_s", out.dispatches_per_s},
             {"first_fill_per_s", out.first_fill_per_s},
             {"bytes_per_response", out.bytes_per_response},
             {"kv_blocks", kv_blocks},
             {"running", sut->policy().running()},
             {"waiting", sut->policy().waiting()},
             {"dispatches", now.dispatches - before.dispatches},
             {"resumes", now.resumes - before.resumes},
             {"migrations", now.migrations - before.migrations},
             {"recomputes", now.recomputes - before.recomputes},
             {"evictions", now.evictions - before.evictions},
             {"fair_turns", now.fair_turns - before.fair_turns},
             {"resident_turns", now.resident_turns - before.resident_turns}};
  return out;
}

} // namespace

int run_bench_scheduler(const bench_scheduler_options& options) {
  const auto ample = measure(options, ample_blocks);
  const auto scarce = measure(options, scarce_blocks);
  // The worse of the two is the figure.
  const ordered_json json{
    {"decisions_per_s", std::min(ample.decisions_per_s, scarce.decisions_per_s)},
    {"dispatches_per_s", std::min(ample.dispatches_per_s, scarce.dispatches_per_s)},
    {"first_fill_per_s", std::min(ample.first_fill_per_s, scarce.first_fill_per_s)},
    {"bytes_per_response", std::max(ample.bytes_per_response, scarce.bytes_per_response)},
    {"workers", options.workers},
    {"responses", options.responses},
    {"ample_kv", ample.all},
    {"scarce_kv", scarce.all}};
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
