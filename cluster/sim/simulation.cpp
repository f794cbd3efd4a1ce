#include "cluster/sim/simulation.hpp"

#include "cluster/policy/cost.hpp"
#include "cluster/sim/sim_worker.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <cmath>
#include <queue>
#include <string>
#include <unordered_map>
#include <variant>

namespace rollcast::sim {

namespace {

using policy::dispatch;
using policy::release;

/// What is under way: a message, a transfer, or a worker's next change of membership.
struct worker_wakes {
  std::uint32_t worker;
};
struct order_arrives {
  std::uint32_t worker;
  policy::decision what;
};
struct kv_arrives {
  std::uint32_t worker;
  dispatch what;
};
struct news_arrives {
  policy::event what;
};

struct occurrence {
  double at = 0;
  std::uint64_t sequence = 0; ///< Breaks ties: first come, first served.
  std::variant<worker_wakes, order_arrives, kv_arrives, news_arrives> what;
  friend bool operator>(const occurrence& a, const occurrence& b) {
    return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
  }
};

struct response_progress {
  std::uint32_t done = 0;
  std::uint32_t tokens_now = 0; ///< Of its chunk, as far as it will really get.
  std::uint32_t reserved = 0;   ///< Blocks of its chunk; 0 in mode static.
  std::uint32_t parked = 0;     ///< Blocks of its parked KV.
  std::uint32_t parked_at = 0;  ///< The worker that holds them.
  std::uint32_t parked_attempt = 0;
  bool spilled = false; ///< Its KV is in the spill space of `parked_at`.
};

class simulation {
public:
  simulation(const workload& batch, const cost_model& model, const sim_options& options);

  result<sim_result> run();

private:
  static policy::policy_limits limits_of(const cost_model& model, const sim_options& options);

  result<void> submit();
  void plan();
  void expect(const dispatch& d);
  void happen(const worker_wakes& what);
  void happen(const order_arrives& what);
  void happen(const kv_arrives& what);
  void happen(const news_arrives& what);
  void obey(std::uint32_t worker, const dispatch& d);
  void obey(std::uint32_t worker, const release& r);
  void obey(std::uint32_t worker, const policy::spill& s);
  void obey(std::uint32_t, const policy::cut&) {
    ROLLCAST_CHECK(false); // its workers are alike and say nothing of their pace
  }
  double spill_copy_ends(std::uint32_t worker, std::uint64_t bytes);
  void start(std::uint32_t worker, const dispatch& d, std::uint64_t prefill);
  void drop_parked(std::uint32_t response);
  void schedule(double at, decltype(occurrence::what) what);
  void schedule_wake(std::uint32_t worker);
  void record(std::uint32_t worker);
  sim_result conclude();

  const workload& batch_;
  const cost_model& model_;
  const sim_options& options_;
  policy::scheduler_policy policy_;
  drafting drafts_;
  std::vector<sim_worker> workers_;
  std::vector<double> link_free_at_;  ///< By worker.
  std::vector<double> spill_free_at_; ///< By worker: the way to its spill space.
  std::vector<double> wake_scheduled_;
  std::vector<response_progress> progress_;
  std::vector<double> finished_at_;
  std::vector<ended_chunk> ended_;
  std::priority_queue<occurrence, std::vector<occurrence>, std::greater<>> queue_;
  std::uint64_t sequence_ = 0;
  double now_ = 0;
  double error_sum_ = 0;
  std::uint64_t estimated_ = 0;
  sim_result out_;
};

policy::policy_limits simulation::limits_of(const cost_model& model, const sim_options& options) {
  auto limits = options.limits;
  limits.rules = options.rules;
  limits.prices.move_fixed_ns = static_cast<std::uint64_t>(model.migration_fixed_s * 1e9);
  limits.prices.move_ps_per_byte =
    std::max<std::uint64_t>(1, static_cast<std::uint64_t>(1e12 / model.migration_bytes_per_s));
  limits.prices.restore_ps_per_byte =
    std::max<std::uint64_t>(1, static_cast<std::uint64_t>(1e12 / model.spill_bytes_per_s));
  limits.prices.recompute_ns_per_token = static_cast<std::uint64_t>(model.prefill_token_s * 1e9);
  return limits;
}

simulation::simulation(const workload& batch, const cost_model& model, const sim_options& options)
  : batch_(batch), model_(model), options_(options), policy_(limits_of(model, options)),
    drafts_(batch, options.speculate, options.seed),
    workers_(model.workers, sim_worker{model, &drafts_}), link_free_at_(model.workers),
    spill_free_at_(model.workers), wake_scheduled_(model.workers, sim_worker::never),
    progress_(batch.responses.size()) {
  finished_at_.reserve(batch.responses.size());
  out_.responses.resize(batch.responses.size());
  out_.timeline.resize(options.timeline ? model.workers : 0);
}

void simulation::schedule(double at, decltype(occurrence::what) what) {
  queue_.push({at, sequence_++, std::move(what)});
}

void simulation::schedule_wake(std::uint32_t worker) {
  const double at = workers_[worker].wakes_at();
  if (at == sim_worker::never || at == wake_scheduled_[worker])
    return;
  wake_scheduled_[worker] = at;
  schedule(at, worker_wakes{worker});
}

result<void> simulation::submit() {
  for (std::uint32_t w = 0; w < model_.workers; ++w) {
    // Ids begin at 1. A worker queues what arrives before the next step, hence twice the batch.
    const policy::worker_joined joins{
      {w + 1},          model_.kv_blocks,          model_.block_tokens,
      model_.batch_max, model_.kv_bytes_per_token, model_.spill_tokens};
    ROLLCAST_CHECK(policy_.on(joins) == policy::verdict::accepted);
  }
  std::unordered_map<std::uint64_t, std::uint32_t> longest; // looked up, never walked
  if (options_.oracle_groups)
    for (const auto& r : batch_.responses)
      longest[r.group] = std::max(longest[r.group], r.output_tokens);
  for (std::size_t i = 0; i < batch_.responses.size(); ++i) {
    const auto& r = batch_.responses[i];
    policy::response_submitted e{{i + 1}, {r.group}, r.index, r.prompt_tokens, batch_.tokens_max};
    if (options_.rules.how == policy::mode::oracle)
      e.tokens_expected = r.output_tokens;
    else if (options_.oracle_groups)
      e.tokens_expected = longest[r.group];
    if (policy_.on(e) != policy::verdict::accepted)
      return fail(errc::bad_config,
                  "group " + std::to_string(r.group) + " index " + std::to_string(r.index)
                    + ": refused, wants " + std::to_string(policy_.last_refusal().wanted)
                    + " tokens of KV, allowed are " + std::to_string(policy_.last_refusal().allowed)
                    + "; raise --kv-blocks or list each response once");
  }
  return {};
}

void simulation::plan() {
  for (;;) {
    const auto decisions = policy_.plan();
    if (decisions.empty())
      return;
    for (const auto& d : decisions) {
      const auto worker = std::visit([](const auto& x) { return x.worker; }, d);
      if (const auto* started = std::get_if<dispatch>(&d); started && started->attempt == 1)
        expect(*started);
      schedule(now_ + model_.message_s,
               order_arrives{static_cast<std::uint32_t>(worker.value - 1), d});
    }
  }
}

void simulation::expect(const dispatch& d) {
  const auto& r = batch_.responses[d.response.value - 1];
  const auto estimate = policy_.estimate({r.group});
  const double expected = std::min(estimate.value_or(batch_.tokens_max), batch_.tokens_max);
  estimated_ += estimate.has_value();
  error_sum_ += std::abs(expected - r.output_tokens);
}

void simulation::happen(const news_arrives& what) {
  ROLLCAST_CHECK(policy_.on(what.what) != policy::verdict::refused);
  plan();
}

void simulation::happen(const order_arrives& what) {
  std::visit([&](const auto& order) { obey(what.worker, order); }, what.what);
}

void simulation::obey(std::uint32_t worker, const release& r) {
  const auto index = static_cast<std::uint32_t>(r.response.value - 1);
  const auto& p = progress_[index];
  if (p.parked_at == worker && p.parked_attempt <= r.attempt)
    drop_parked(index);
}

void simulation::obey(std::uint32_t worker, const policy::spill& s) {
  const auto index = static_cast<std::uint32_t>(s.response.value - 1);
  auto& p = progress_[index];
  if (p.parked == 0 || p.parked_at != worker || p.parked_attempt != s.attempt)
    return;
  drop_parked(index);
  p.spilled = true;
  // The blocks are free at once; the copy is paid for by whoever uses the way next.
  const auto context = std::uint64_t{batch_.responses[index].prompt_tokens} + p.done;
  spill_copy_ends(worker, context * model_.kv_bytes_per_token);
  ++out_.spills;
}

double simulation::spill_copy_ends(std::uint32_t worker, std::uint64_t bytes) {
  auto& free_at = spill_free_at_[worker];
  free_at = std::max(now_, free_at) + static_cast<double>(bytes) / model_.spill_bytes_per_s;
  return free_at;
}

void simulation::drop_parked(std::uint32_t response) {
  auto& p = progress_[response];
  workers_[p.parked_at].unpark(p.parked);
  p.parked = 0;
  p.spilled = false;
}

void simulation::obey(std::uint32_t worker, const dispatch& d) {
  const auto index = static_cast<std::uint32_t>(d.response.value - 1);
  const auto& p = progress_[index];
  const auto context = std::uint64_t{batch_.responses[index].prompt_tokens} + p.done;
  switch (d.kv) {
    case policy::kv_source::resume:
      ROLLCAST_CHECK((p.parked > 0 || p.spilled) && p.parked_at == worker);
      if (p.spilled)
        return schedule(spill_copy_ends(worker, context * model_.kv_bytes_per_token),
                        kv_arrives{worker, d});
      drop_parked(index);
      start(worker, d, 0);
      return;
    case policy::kv_source::recompute: start(worker, d, context); return;
    case policy::kv_source::pull: break;
  }
  // One link a worker, both ways: a transfer waits until source and target are free.
  const auto source = d.from.value - 1;
  const auto bytes = context * model_.kv_bytes_per_token;
  const double there =
    p.spilled ? spill_copy_ends(static_cast<std::uint32_t>(source), bytes) : now_;
  const double begins = std::max({there, link_free_at_[source], link_free_at_[worker]});
  const double ends =
    begins + model_.migration_fixed_s + static_cast<double>(bytes) / model_.migration_bytes_per_s;
  link_free_at_[source] = link_free_at_[worker] = ends;
  ++out_.migrations;
  out_.migrated_bytes += bytes;
  schedule(ends, kv_arrives{worker, d});
}

void simulation::happen(const kv_arrives& what) {
  const auto& d = what.what;
  // The source lets go now, which is two messages early: a round of control traffic is below a
  // step, and one record a response is then enough.
  drop_parked(static_cast<std::uint32_t>(d.response.value - 1));
  start(what.worker, d, 0);
  if (d.kv == policy::kv_source::pull)
    schedule(now_ + model_.message_s,
             news_arrives{policy::kv_moved{d.response, d.worker, d.attempt}});
}

void simulation::start(std::uint32_t worker, const dispatch& d, std::uint64_t prefill) {
  const auto index = static_cast<std::uint32_t>(d.response.value - 1);
  const auto& r = batch_.responses[index];
  auto& p = progress_[index];
  p.tokens_now = std::min(d.tokens_now, r.output_tokens - p.done);
  p.reserved = d.kv_blocks;
  out_.recomputed_tokens += p.done > 0 ? prefill : 0;
  ++out_.chunks;
  workers_[worker].arrive(now_, {index, d.attempt, std::uint64_t{r.prompt_tokens} + p.done,
                                 p.tokens_now, prefill, d.kv_blocks});
  schedule_wake(worker);
}

void simulation::happen(const worker_wakes& what) {
  auto& worker = workers_[what.worker];
  if (now_ != worker.wakes_at())
    return; // something arrived meanwhile and moved it
  wake_scheduled_[what.worker] = sim_worker::never;
  ended_.clear();
  worker.wake(ended_);
  for (const auto& chunk : ended_) {
    const auto& r = batch_.responses[chunk.response];
    auto& p = progress_[chunk.response];
    if (p.done == 0)
      out_.responses[chunk.response].started_s = chunk.started_s;
    p.done += std::exchange(p.tokens_now, 0);
    const bool complete = p.done == r.output_tokens;
    const bool kept = !complete && p.reserved > 0;
    if (complete) {
      finished_at_.push_back(now_);
      out_.responses[chunk.response].ended_s = now_;
    }
    if (kept) {
      p.parked = policy::blocks_for(std::uint64_t{r.prompt_tokens} + p.done, model_.block_tokens);
      p.parked_at = what.worker;
      p.parked_attempt = chunk.attempt;
      worker.park(p.parked);
    }
    schedule(
      now_ + model_.message_s,
      news_arrives{policy::chunk_finished{
        {chunk.response + 1ull}, {what.worker + 1ull}, chunk.attempt, p.done, complete, kept}});
  }
  out_.busy_kv_fraction =
    std::max(out_.busy_kv_fraction,
             static_cast<double>(worker.blocks_held()) / static_cast<double>(model_.kv_blocks));
  schedule_wake(what.worker);
  record(what.worker);
}

void simulation::record(std::uint32_t worker) {
  if (!options_.timeline)
    return;
  auto& line = out_.timeline[worker];
  const auto running = static_cast<std::uint32_t>(workers_[worker].running());
  if (line.empty() || line.back().running != running)
    line.push_back({now_, running});
}

result<sim_result> simulation::run() {
  if (auto ok = submit(); !ok)
    return fail(ok);
  plan();
  while (!queue_.empty()) {
    const auto next = queue_.top();
    queue_.pop();
    now_ = next.at;
    std::visit([&](const auto& what) { happen(what); }, next.what);
  }
  ROLLCAST_CHECK(finished_at_.size() == batch_.responses.size());
  return conclude();
}

sim_result simulation::conclude() {
  const auto count = batch_.responses.size();
  out_.makespan_s = finished_at_.back(); // in order of time
  const auto tail_from = count - count / 10;
  out_.tail_s = tail_from == 0 ? out_.makespan_s : out_.makespan_s - finished_at_[tail_from - 1];
  double busy = 0;
  std::uint64_t verifications = 0;
  for (const auto& w : workers_) {
    busy += w.totals().busy_s;
    out_.generated_tokens += w.totals().generated_tokens;
    out_.preemptions += w.totals().preemptions;
    out_.recomputed_tokens += w.totals().recomputed_tokens;
    out_.draft_tokens += w.totals().draft_tokens;
    out_.accepted_tokens += w.totals().accepted_tokens;
    verifications += w.totals().verifications;
  }
  if (verifications > 0)
    out_.mean_acceptance_length =
      1 + static_cast<double>(out_.accepted_tokens) / static_cast<double>(verifications);
  out_.idle_fraction = 1 - busy / (out_.makespan_s * model_.workers);
  out_.evictions = policy_.counters().evictions;
  out_.estimate_error_tokens = error_sum_ / static_cast<double>(count);
  out_.estimated_share = static_cast<double>(estimated_) / static_cast<double>(count);
  return std::move(out_);
}

} // namespace

result<sim_result> simulate(const workload& batch, const cost_model& model,
                            const sim_options& options) {
  if (auto ok = check(model); !ok)
    return fail(ok);
  if (batch.responses.empty())
    return fail(errc::bad_config, "workload " + batch.name + " has no responses");
  return simulation{batch, model, options}.run();
}

} // namespace rollcast::sim
