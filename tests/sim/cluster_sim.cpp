#include "tests/sim/cluster_sim.hpp"

#include <algorithm>

namespace rollcast::sim {

namespace {

constexpr std::uint32_t tokens_max = 256;
constexpr std::uint32_t prompt_max = 40;
constexpr int plans_per_tick_max = 1024;

} // namespace

cluster_sim::cluster_sim(std::uint64_t seed, const workload& load, const fault_plan& faults)
  : rng_(seed), faults_(faults), policy_(load.limits), wanted_workers_(load.workers) {
  book_.reserve_tokens = load.limits.reserve_tokens;
  for (std::uint32_t i = 0; i < load.workers; ++i)
    join();
  for (std::uint32_t i = 0; i < load.groups; ++i)
    draw_group(i, load);
}

void cluster_sim::join() {
  policy::worker_joined shape;
  shape.worker = worker_id{++last_worker_};
  shape.block_tokens = rng_.chance(50) ? 16 : 8;
  // Scarce: one whole response always fits, three long ones never do.
  shape.kv_blocks = (tokens_max + prompt_max) / shape.block_tokens + between(1, 40);
  shape.slots = between(2, 6);
  shape.kv_bytes_per_token = rng_.chance(50) ? 100 : 100'000'000; // to move, or to recompute
  shape.spill_tokens = rng_.chance(50) ? 0 : between(1, 2 * tokens_max);
  shape.spill_page_tokens = between(1, 40);
  workers_.emplace(shape.worker, incarnation{pretend_worker{shape}});
  post(shape, between(0, 3));
}

void cluster_sim::draw_group(std::uint32_t index, const workload& load) {
  const group_id group{index + 1};
  policy::group_rules rules = load.limits.rules;
  rules.how = rng_.chance(load.static_percent) ? policy::mode::static_ : policy::mode::context;
  const auto typical = between(2, 8) * between(1, 20); // siblings are alike, groups are not
  const auto prompt = between(1, prompt_max);
  for (std::uint32_t i = 0; i < load.group_size; ++i) {
    const response_id id{std::uint64_t{index} * load.group_size + i + 1};
    length_[id] = std::clamp(typical * between(60, 140) / 100, 1u, tokens_max);
    groups_[group].push_back(id);
    post(policy::response_submitted{id, group, i, prompt, tokens_max, 0, rules},
         index < load.groups / 2 ? 0 : between(0, 60));
  }
}

void cluster_sim::post(const policy::event& e, std::uint32_t after) {
  const auto due = now_ + after + rng_.below(faults_.delay_ticks_max + 1);
  events_.emplace(due, e);
  if (happens(faults_.replay))
    events_.emplace(due + between(0, 80), e);
}

void cluster_sim::post_from(incarnation& w, const policy::event& e) {
  if (!happens(faults_.message_lost))
    return post(e);
  // A confirmation may go missing alone; anything else is missed, and the worker with it.
  if (!std::holds_alternative<policy::kv_moved>(e))
    lose(w, false);
}

void cluster_sim::send(worker_id to, const order& what) {
  const auto it = workers_.find(to);
  if (it == workers_.end() || it->second.gone_at > 0)
    return; // the policy has yet to hear of it
  auto& w = it->second;
  if (happens(faults_.message_lost))
    return lose(w, false);
  w.last_order_due = std::max(w.last_order_due, now_ + 1 + rng_.below(faults_.delay_ticks_max + 1));
  orders_.emplace(w.last_order_due, std::pair{to, what});
  if (happens(faults_.replay))
    orders_.emplace(w.last_order_due + between(0, 80), std::pair{to, what});
}

void cluster_sim::lose(incarnation& w, bool crashed) {
  if (w.gone_at > 0)
    return;
  w.gone_at = now_ + 30; // until then it goes on as if nothing had happened, unless it crashed
  w.crashed = crashed;
  post(policy::worker_lost{w.worker.shape().worker}, between(0, 5));
}

void cluster_sim::inject() {
  std::size_t well = 0;
  for (auto& [id, w] : workers_) {
    if (happens(faults_.crash))
      lose(w, true);
    else if (happens(faults_.false_loss))
      lose(w, false);
    if (w.gone_at == 0 && happens(faults_.drain)) {
      post(policy::worker_draining{id});
      post(policy::worker_lost{id}, between(10, 40));
      w.gone_at = now_ + 60;
      if (rng_.chance(50))
        w.worker.cut_all(between(0, 16));
    }
    if (happens(faults_.paced))
      post(policy::worker_paced{id, rng_.below(20)});
    if (happens(faults_.priced))
      post(policy::worker_priced{id, {0, rng_.below(3000), rng_.below(3000), rng_.below(3000)}});
    std::vector<policy::event> says;
    if (happens(faults_.kv_lost))
      w.worker.lose_parked(rng_.next(), says);
    for (const auto& e : says) {
      self_lost_.emplace(id, std::get<policy::kv_lost>(e).response);
      post_from(w, e);
    }
    well += w.gone_at == 0;
  }
  std::erase_if(workers_, [this](const auto& kvp) {
    return kvp.second.crashed || (kvp.second.gone_at > 0 && kvp.second.gone_at < now_);
  });
  if (well < wanted_workers_ && now_ >= next_join_) {
    next_join_ = now_ + between(1, 10);
    join();
  }
  if (happens(faults_.cancel))
    post(policy::response_cancelled{response_id{1 + rng_.below(length_.size())}});
}

bool cluster_sim::imports(const work_order& o) {
  const auto source = workers_.find(o.what.from);
  if (source == workers_.end())
    return false;
  if (source->second.worker.holds(o.what.response, o.tokens_done))
    return !happens(faults_.pull_failed);
  // Missing: fine if the source lost it or is given up, or if nobody waits for this chunk any more.
  const auto& r = book_.responses.at(o.what.response);
  const auto target = workers_.find(o.what.worker);
  const auto awaited = target != workers_.end() && target->second.gone_at == 0
                       && r.holder == o.what.worker && r.attempt == o.what.attempt;
  if (awaited && source->second.gone_at == 0
      && !self_lost_.contains({o.what.from, o.what.response}))
    wrong_ = "worker " + std::to_string(o.what.from.value) + " let go of response "
             + std::to_string(o.what.response.value) + " before its move was confirmed";
  return false;
}

void cluster_sim::run_workers() {
  const auto import = [this](const work_order& o) { return imports(o); };
  for (auto& [id, w] : workers_) {
    std::vector<policy::event> says;
    w.worker.step(
      says, [this] { return !happens(faults_.kv_dropped); }, import);
    for (const auto& e : says)
      post_from(w, e);
  }
}

std::string cluster_sim::deliver_orders() {
  while (!orders_.empty() && orders_.begin()->first <= now_) {
    const auto [to, what] = orders_.begin()->second;
    orders_.erase(orders_.begin());
    const auto it = workers_.find(to);
    if (it == workers_.end() || it->second.gone_at > 0)
      continue;
    auto& w = it->second.worker;
    if (const auto* r = std::get_if<policy::release>(&what)) {
      w.take(*r);
      continue;
    }
    if (const auto* s = std::get_if<policy::spill>(&what)) {
      const auto fails = happens(faults_.spill_failed);
      if (fails)
        self_lost_.emplace(to, s->response);
      if (auto wrong = w.take(*s, fails); !wrong.empty())
        return wrong;
      continue;
    }
    if (const auto* c = std::get_if<policy::cut>(&what)) {
      w.take(*c, between(0, 16));
      continue;
    }
    const auto& o = std::get<work_order>(what);
    const auto ticks = 1 + std::min(o.what.tokens_now, tokens_max) / 16 + between(0, 3);
    if (auto wrong = w.take(o, happens(faults_.chunk_failed), ticks); !wrong.empty())
      return wrong;
  }
  return {};
}

std::string cluster_sim::deliver_events() {
  while (!events_.empty() && events_.begin()->first <= now_) {
    const auto e = events_.begin()->second;
    events_.erase(events_.begin());
    if (auto wrong = take(e); !wrong.empty())
      return wrong;
  }
  return {};
}

std::string cluster_sim::take(const policy::event& e) {
  const auto became = policy_.on(e);
  if (became == policy::verdict::refused)
    return "an event is refused in a small run: wanted "
           + std::to_string(policy_.last_refusal().wanted) + ", allowed "
           + std::to_string(policy_.last_refusal().allowed);
  if (became == policy::verdict::stale)
    return {};
  std::string wrong;
  if (const auto* f = std::get_if<policy::chunk_finished>(&e))
    wrong = check_report(book_, f->response, f->worker, f->attempt);
  if (const auto* f = std::get_if<policy::chunk_failed>(&e))
    wrong = check_report(book_, f->response, f->worker, f->attempt);
  if (const auto* f = std::get_if<policy::kv_moved>(&e))
    wrong = check_report(book_, f->response, f->worker, f->attempt);
  if (const auto* s = std::get_if<policy::response_submitted>(&e);
      s && book_.responses.contains(s->response))
    wrong = "response " + std::to_string(s->response.value) + " is submitted twice";
  if (wrong.empty())
    write_down(book_, e);
  return wrong;
}

std::string cluster_sim::plan() {
  for (int calls = 0; calls < plans_per_tick_max; ++calls) {
    const auto decisions = policy_.plan();
    if (decisions.empty())
      return {};
    for (const auto& d : decisions)
      if (auto wrong = decide(d); !wrong.empty())
        return wrong;
  }
  return "the policy never stops deciding";
}

std::string cluster_sim::decide(const policy::decision& decided) {
  if (const auto* r = std::get_if<policy::release>(&decided)) {
    trace_ = trace_ * 31 + r->response.value * 7 + r->worker.value;
    if (auto wrong = check_release(book_, *r); !wrong.empty())
      return wrong;
    send(r->worker, *r);
    return {};
  }
  if (const auto* s = std::get_if<policy::spill>(&decided)) {
    trace_ = trace_ * 31 + s->response.value * 13 + s->worker.value;
    if (auto wrong = check_spill(book_, *s); !wrong.empty())
      return wrong;
    send(s->worker, *s);
    return {};
  }
  if (const auto* c = std::get_if<policy::cut>(&decided)) {
    trace_ = trace_ * 31 + c->response.value * 19 + c->worker.value;
    if (auto wrong = check_cut(book_, *c); !wrong.empty())
      return wrong;
    send(c->worker, *c);
    return {};
  }
  const auto& d = std::get<policy::dispatch>(decided);
  trace_ = trace_ * 31 + d.response.value * 1009 + d.worker.value * 17 + d.attempt;
  if (auto wrong = check_dispatch(book_, d); !wrong.empty())
    return wrong;
  write_down(book_, decided);
  const auto& r = book_.responses.at(d.response);
  send(d.worker, work_order{d, r.terms.prompt_tokens, r.tokens_done, length_.at(d.response)});
  return {};
}

std::string cluster_sim::close_groups() {
  for (auto it = groups_.begin(); it != groups_.end();) {
    const auto ended = [this](response_id id) {
      const auto r = book_.responses.find(id);
      return r != book_.responses.end() && r->second.ended();
    };
    if (!std::all_of(it->second.begin(), it->second.end(), ended)) {
      ++it;
      continue;
    }
    if (auto wrong = take(policy::group_closed{it->first}); !wrong.empty())
      return wrong;
    it = groups_.erase(it);
  }
  return {};
}

std::string cluster_sim::step() {
  ++now_;
  inject();
  run_workers();
  if (!wrong_.empty())
    return wrong_;
  if (auto wrong = deliver_orders(); !wrong.empty())
    return wrong;
  if (auto wrong = deliver_events(); !wrong.empty())
    return wrong;
  if (auto wrong = plan(); !wrong.empty())
    return wrong;
  if (auto wrong = check_room(book_, policy_); !wrong.empty())
    return wrong;
  if (now_ % 8 != 0)
    return {};
  if (auto wrong = check_nothing_lost(book_, policy_); !wrong.empty())
    return wrong;
  return close_groups();
}

bool cluster_sim::all_ended() const {
  return book_.responses.size() == length_.size()
         && std::all_of(book_.responses.begin(), book_.responses.end(),
                        [](const auto& kvp) { return kvp.second.ended(); });
}

std::size_t cluster_sim::finished() const {
  return static_cast<std::size_t>(
    std::count_if(book_.responses.begin(), book_.responses.end(),
                  [](const auto& kvp) { return kvp.second.finished > 0; }));
}

} // namespace rollcast::sim
