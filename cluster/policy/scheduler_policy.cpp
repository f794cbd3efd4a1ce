#include "cluster/policy/scheduler_policy.hpp"

#include "cluster/policy/cost.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <limits>

namespace rollcast::policy {

namespace {

/// Prompt and limit together stay below this, so that sums of tokens fit 32 bits.
constexpr std::uint64_t context_tokens_max = std::uint64_t{1} << 31;

} // namespace

scheduler_policy::scheduler_policy(policy_limits limits) : limits_(limits) {}

verdict scheduler_policy::on(const event& what) {
  const auto became = std::visit([this](const auto& e) { return note(e); }, what);
  counters_.stale_events += became == verdict::stale;
  counters_.refused_events += became == verdict::refused;
  return became;
}

// -- workers --------------------------------------------------------------------------------------

verdict scheduler_policy::note(const worker_joined& e) {
  if (gone_workers_.contains(e.worker.value) || fleet_.find(e.worker) != no_slot)
    return verdict::stale;
  if (e.block_tokens == 0 || e.slots == 0 || e.kv_blocks == 0)
    return refuse(refusal_reason::bad_numbers, 0, 1);
  if (fleet_.size() >= limits_.workers_max)
    return refuse(refusal_reason::workers_full, fleet_.size() + 1, limits_.workers_max);
  fleet_.add(e, limits_.prices);
  for (const auto& [id, slot] : std::exchange(stranded_, {}))
    wait(slot); // what is still too large is found out again by the next plan
  return verdict::accepted;
}

verdict scheduler_policy::note(const worker_priced& e) {
  const auto worker = fleet_.find(e.worker);
  if (worker == no_slot)
    return verdict::stale;
  const auto known = [](std::uint64_t measured, std::uint64_t otherwise) {
    return measured > 0 ? measured : otherwise;
  };
  const auto& otherwise = limits_.prices;
  // The two prices of a move are one measurement, in which the fixed part may well be nothing.
  const auto moves = e.prices.move_ps_per_byte > 0;
  fleet_.price(worker, {moves ? e.prices.move_fixed_ns : otherwise.move_fixed_ns,
                        known(e.prices.move_ps_per_byte, otherwise.move_ps_per_byte),
                        known(e.prices.restore_ps_per_byte, otherwise.restore_ps_per_byte),
                        known(e.prices.recompute_ns_per_token, otherwise.recompute_ns_per_token)});
  return verdict::accepted;
}

verdict scheduler_policy::note(const worker_paced& e) {
  const auto worker = fleet_.find(e.worker);
  if (worker == no_slot)
    return verdict::stale;
  fleet_.pace(worker, e.token_ns);
  ++pace_news_;
  return verdict::accepted;
}

verdict scheduler_policy::note(const worker_lost& e) {
  if (gone_workers_.contains(e.worker.value))
    return verdict::stale;
  // A loss may overtake the news of the joining; the late join must then stay without effect.
  gone_workers_.insert(e.worker.value);
  const auto worker = fleet_.find(e.worker);
  if (worker == no_slot)
    return verdict::accepted;
  const auto& w = fleet_[worker];
  while (!w.pinned.empty())
    fleet_.unpin(w.pinned.back());
  while (!w.parked.empty())
    lose_parked(w.parked.begin()->slot);
  while (!w.spilled.empty())
    lose_parked(w.spilled.back());
  while (!w.running.empty()) {
    give_back(w.running.back());
  }
  fleet_.remove(worker);
  if (!fleet_.any_accepting())
    give_up_parked();
  return verdict::accepted;
}

verdict scheduler_policy::note(const worker_draining& e) {
  const auto worker = fleet_.find(e.worker);
  if (worker == no_slot || fleet_[worker].draining)
    return verdict::stale;
  fleet_.drain(worker);
  if (!fleet_.any_accepting())
    give_up_parked();
  return verdict::accepted;
}

// -- responses ------------------------------------------------------------------------------------

verdict scheduler_policy::note(const response_submitted& e) {
  if (closed_groups_.contains(e.group.value) || response_slots_.find(e.response) != no_slot)
    return verdict::stale;
  const auto need = std::uint64_t{e.prompt_tokens} + e.tokens_max;
  if (need >= context_tokens_max)
    return refuse(refusal_reason::bad_numbers, need, context_tokens_max - 1);
  if (e.tokens_done >= e.tokens_max)
    return refuse(refusal_reason::bad_numbers, e.tokens_done, e.tokens_max);
  if (response_slots_.size() >= limits_.responses_max)
    return refuse(refusal_reason::responses_full, response_slots_.size() + 1,
                  limits_.responses_max);
  // Before any worker has joined nothing is known; `stranded` tells what turned out too large.
  if (fleet_.any_accepting() && need > fleet_.largest_tokens())
    return refuse(refusal_reason::larger_than_fleet, need, fleet_.largest_tokens());
  response_state r;
  r.id = e.response;
  r.group = open_group(e);
  r.prompt_tokens = e.prompt_tokens;
  r.tokens_max = e.tokens_max;
  r.tokens_done = e.tokens_done;
  // A second probe would be a second claim to the front of the line.
  auto& g = groups_[r.group];
  const auto probing = g.rules.how == mode::context && g.rules.probe_first;
  r.probe = probing && e.index == 0 && !g.probed;
  g.probed |= r.probe;
  const auto slot = responses_.add(r);
  response_slots_.insert(e.response, slot);
  g.members.push_back(slot);
  ++g.live;
  advance(r.group, r.tokens_done); // from the journal
  tell(r.group, e.tokens_expected);
  if (g.rules.how == mode::oracle && e.tokens_expected > 0)
    line_.expect(e.response, e.tokens_expected);
  wait(slot);
  return verdict::accepted;
}

slot_t scheduler_policy::open_group(const response_submitted& e) {
  if (const auto known = group_slots_.find(e.group); known != no_slot)
    return known;
  group_state g;
  g.id = e.group;
  g.sequence = ++sequence_;
  g.rules = e.rules.value_or(limits_.rules);
  const auto slot = groups_.add(std::move(g));
  group_slots_.insert(e.group, slot);
  return slot;
}

verdict scheduler_policy::note(const chunk_finished& e) {
  const auto response = believed(e.response, e.worker, e.attempt);
  if (response == no_slot)
    return verdict::stale;
  auto& r = responses_[response];
  // A response at its limit is complete, and one that is not has tokens left to ask for.
  const auto most = std::min(r.tokens_done + budget(r), r.tokens_max - (e.complete ? 0 : 1));
  if (e.tokens_done < r.tokens_done || e.tokens_done > most)
    return refuse(refusal_reason::bad_numbers, e.tokens_done, most);
  // Cut before it came to anything: a source that has not let go is the home again.
  if (r.cut_asked && !e.complete)
    taken_from_[r.id] = e.worker;
  if (e.tokens_done == r.tokens_done && !e.complete && !e.kv_kept) {
    give_back(response);
    return verdict::accepted;
  }
  const auto worker = r.worker;
  const auto reserved = r.kv_reserved;
  stop_running(response);
  if (r.kv_worker != no_slot) {
    // The target has computed on: whatever became of its confirmation, the source is not needed.
    release_later(r.kv_worker, r, r.kv_attempt);
    fleet_.unpin(response);
  }
  r.tokens_done = e.tokens_done;
  r.pull_failed = false;
  if (e.complete) {
    measure(r.group, r.tokens_done);
    end(response);
    return verdict::accepted;
  }
  advance(r.group, r.tokens_done);
  if (groups_[r.group].rules.force_migration)
    last_edges_[r.id] = e.worker;
  // A chunk without reservation (static_) parks nothing: its worker owns its memory.
  const auto kept = e.kv_kept && reserved > 0;
  r.resident = kept && fleet_.any_accepting(); // its rank, asked for next, tells it from the others
  if (kept && !r.resident)
    release_later(worker, r, r.attempt); // nobody is left to fetch it
  if (r.resident)
    fleet_.park(response, worker, blocks_for(r.context_tokens(), fleet_[worker].block_tokens),
                line_.rank(r));
  wait(response);
  return verdict::accepted;
}

verdict scheduler_policy::note(const chunk_failed& e) {
  const auto response = believed(e.response, e.worker, e.attempt);
  if (response == no_slot)
    return verdict::stale;
  auto& r = responses_[response];
  // The source may be out of the target's reach: the next chunk starts at home or from scratch.
  r.pull_failed = r.kv_worker != no_slot;
  ++counters_.failed_chunks;
  give_back(response);
  return verdict::accepted;
}

verdict scheduler_policy::note(const kv_moved& e) {
  const auto response = believed(e.response, e.worker, e.attempt);
  if (response == no_slot || responses_[response].kv_worker == no_slot)
    return verdict::stale;
  const auto& r = responses_[response];
  release_later(r.kv_worker, r, r.kv_attempt);
  fleet_.unpin(response);
  return verdict::accepted;
}

verdict scheduler_policy::note(const kv_lost& e) {
  const auto response = response_slots_.find(e.response);
  if (response == no_slot)
    return verdict::stale;
  const auto& r = responses_[response];
  if (r.kv_worker == no_slot || fleet_[r.kv_worker].id != e.worker || r.kv_attempt != e.attempt)
    return verdict::stale;
  if (r.at == phase::running)
    fleet_.unpin(response);
  else
    lose_parked(response);
  return verdict::accepted;
}

verdict scheduler_policy::note(const response_cancelled& e) {
  const auto response = response_slots_.find(e.response);
  if (response == no_slot || responses_[response].at == phase::ended)
    return verdict::stale;
  cancel(response);
  return verdict::accepted;
}

verdict scheduler_policy::note(const group_closed& e) {
  const auto group = group_slots_.find(e.group);
  if (group == no_slot)
    return verdict::stale;
  for (const auto response : groups_[group].members) {
    if (responses_[response].at != phase::ended)
      cancel(response);
    line_.forget_expected(responses_[response].id);
    response_slots_.erase(responses_[response].id);
    responses_.erase(response);
  }
  closed_groups_.insert(e.group.value);
  line_.forget(group);
  groups_.erase(group);
  group_slots_.erase(e.group);
  return verdict::accepted;
}

// -- helpers --------------------------------------------------------------------------------------

verdict scheduler_policy::refuse(refusal_reason reason, std::uint64_t wanted,
                                 std::uint64_t allowed) {
  refusal_ = {reason, wanted, allowed};
  return verdict::refused;
}

slot_t scheduler_policy::believed(response_id id, worker_id worker, std::uint32_t attempt) const {
  const auto slot = response_slots_.find(id);
  if (slot == no_slot)
    return no_slot;
  const auto& r = responses_[slot];
  const auto holds = r.at == phase::running && fleet_[r.worker].id == worker;
  return holds && r.attempt == attempt ? slot : no_slot;
}

void scheduler_policy::wait(slot_t response) {
  responses_[response].at = phase::waiting;
  line_.add(response);
}

void scheduler_policy::give_up_parked() {
  const auto give_up = [this](slot_t response) {
    const auto& r = responses_[response];
    release_later(r.kv_worker, r, r.kv_attempt);
    lose_parked(response);
  };
  for (const auto worker : fleet_.live()) {
    const auto& w = fleet_[worker];
    while (!w.parked.empty())
      give_up(w.parked.begin()->slot);
    while (!w.spilled.empty())
      give_up(w.spilled.back());
  }
}

void scheduler_policy::lose_parked(slot_t response) {
  const auto in_line = responses_[response].at == phase::waiting; // a stranded one is not
  if (in_line)
    line_.remove(response);
  fleet_.unpark(response);
  if (in_line)
    line_.add(response);
}

void scheduler_policy::spill_parked(slot_t response) {
  const auto in_line = responses_[response].at == phase::waiting; // a stranded one is not
  if (in_line)
    line_.remove(response);
  fleet_.spill(response);
  if (in_line)
    line_.add(response);
}

void scheduler_policy::stop_running(slot_t response) {
  fleet_.stop(response);
  --running_;
}

void scheduler_policy::give_back(slot_t response) {
  stop_running(response);
  auto& r = responses_[response];
  r.resident = r.kv_worker != no_slot && !r.spilled;
  if (r.kv_worker != no_slot) // a source that has not let go is the home again
    fleet_.unpin_to_home(response, line_.rank(r));
  wait(response);
}

void scheduler_policy::cancel(slot_t response) {
  auto& r = responses_[response];
  if (r.at == phase::running) {
    release_later(r.worker, r, r.attempt);
    stop_running(response);
    if (r.kv_worker != no_slot) {
      release_later(r.kv_worker, r, r.kv_attempt);
      fleet_.unpin(response);
    }
  } else {
    if (r.at == phase::waiting)
      line_.remove(response);
    else
      stranded_.erase(r.id);
    if (r.kv_worker != no_slot) {
      release_later(r.kv_worker, r, r.kv_attempt);
      fleet_.unpark(response);
    }
  }
  end(response);
}

void scheduler_policy::end(slot_t response) {
  auto& r = responses_[response];
  r.at = phase::ended;
  last_edges_.erase(r.id);
  taken_from_.erase(r.id);
  auto& g = groups_[r.group];
  if (--g.live > 0 || !g.bound)
    return;
  // The worker no longer has the group to finish, so the next one may be bound to it.
  if (const auto worker = fleet_.find(g.bound_to); worker != no_slot)
    fleet_.unbind(worker);
  g.bound = false;
}

void scheduler_policy::measure(slot_t group, std::uint32_t length) {
  auto& g = groups_[group];
  if (g.measured && length <= g.longest_finished)
    return;
  g.measured = true;
  g.longest_finished = length;
  reestimate(group);
}

void scheduler_policy::tell(slot_t group, std::uint32_t longest) {
  auto& g = groups_[group];
  if (g.rules.how != mode::context || longest <= g.told)
    return;
  g.told = longest;
  reestimate(group);
}

void scheduler_policy::advance(slot_t group, std::uint32_t tokens_done) {
  auto& g = groups_[group];
  if (g.rules.how != mode::context || tokens_done <= g.furthest)
    return;
  g.furthest = tokens_done;
  if (std::uint64_t{limits_.outlook} * tokens_done > g.longest_finished)
    reestimate(group);
}

void scheduler_policy::reestimate(slot_t group) {
  line_.reestimate(group);
  for (const auto& entry : groups_[group].waiting)
    if (responses_[entry.slot].resident)
      fleet_.rerank(entry.slot, line_.rank(responses_[entry.slot]));
}

void scheduler_policy::release_later(slot_t worker, const response_state& r,
                                     std::uint32_t attempt) {
  releases_.push_back({fleet_[worker].id, r.id, attempt});
}

} // namespace rollcast::policy
