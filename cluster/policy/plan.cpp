#include "cluster/policy/cost.hpp"
#include "cluster/policy/scheduler_policy.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <limits>

// The second half of `scheduler_policy`: from what is known to what is done.

namespace rollcast::policy {

namespace {

constexpr std::uint32_t overtakes_top = std::numeric_limits<std::uint16_t>::max();
/// How many of those parked on a worker are asked whether they go first.
constexpr int resident_tries = 4;

} // namespace

std::vector<decision> scheduler_policy::plan() {
  std::vector<decision> out;
  unyielding_ = no_slot;
  plan_releases(out);
  plan_static(out);
  plan_chunks(out);
  plan_cuts(out);
  return out;
}

void scheduler_policy::plan_releases(std::vector<decision>& out) {
  // The room is counted as free already, so no dispatch may go before these: if they fill the plan,
  // it holds nothing else.
  while (releases_told_ < releases_.size() && out.size() < limits_.decisions_per_plan) {
    const auto& r = releases_[releases_told_++];
    if (fleet_.find(r.worker) != no_slot)
      out.emplace_back(r);
  }
  if (releases_told_ < releases_.size())
    return;
  releases_.clear();
  releases_told_ = 0;
}

// -- static_ --------------------------------------------------------------------------------------

void scheduler_policy::plan_static(std::vector<decision>& out) {
  while (out.size() < limits_.decisions_per_plan && fleet_.any_accepting()) {
    const auto response = line_.first_static();
    if (response == no_slot)
      return;
    const auto worker = bound_worker(responses_[response].group);
    auto d = begin(response, worker, 0);
    d.kv = kv_source::recompute;
    out.emplace_back(d);
  }
}

slot_t scheduler_policy::bound_worker(slot_t group) {
  auto& g = groups_[group];
  const auto held = g.bound ? fleet_.find(g.bound_to) : no_slot;
  if (held != no_slot && !fleet_[held].draining)
    return held;
  if (held != no_slot)
    fleet_.unbind(held);
  const auto worker = g.bound ? fleet_.least_bound() : fleet_.next_in_round();
  fleet_.bind(worker);
  g.bound = true;
  g.bound_to = fleet_[worker].id;
  return worker;
}

// -- context --------------------------------------------------------------------------------------

void scheduler_policy::plan_chunks(std::vector<decision>& out) {
  waiting_line::cursor at;
  std::vector<std::pair<slot_t, std::uint64_t>> passed; // who, and how many had been placed then
  auto fair_tried = limits_.fair_every == 0;
  for (;;) {
    fleet_.settle();
    if (out.size() >= limits_.decisions_per_plan || !fleet_.any_open())
      break;
    const auto fair = !fair_tried && placements_ % limits_.fair_every == limits_.fair_every - 1;
    const auto response = fair ? line_.least_served() : line_.first(at);
    if (fair && response == no_slot) { // only groups that are estimated take fair turns
      fair_tried = true;
      continue;
    }
    if (response == no_slot)
      break;
    auto& r = responses_[response];
    if (chunk_tokens(r) > fleet_.largest_tokens()) {
      line_.remove(response);
      r.at = phase::stranded;
      stranded_.emplace(r.id, response);
      continue;
    }
    if (place(response, fair, out)) {
      ++placements_;
      counters_.fair_turns += fair;
      continue;
    }
    if (fair) {
      fair_tried = true;
      continue;
    }
    if (starving(r) || passed.size() >= limits_.pass_over_max)
      break;
    passed.emplace_back(response, placements_);
    line_.pass_over(at);
  }
  for (const auto& [response, before] : passed)
    if (responses_[response].at == phase::waiting)
      overtake(response, placements_ - before);
}

bool scheduler_policy::place(slot_t response, bool fair, std::vector<decision>& out) {
  const auto& r = responses_[response];
  const auto tokens = room_tokens(r);
  const auto home = r.kv_worker;
  const auto left = left_behind(response);
  const auto other = fleet_.least_loaded(tokens, left);
  if (home != no_slot && home != left && fleet_[home].open()) {
    const auto& h = fleet_[home];
    const auto fits = h.tokens(h.free_blocks() + r.kv_blocks) >= tokens;
    if (fits && (!other || h.load() <= fleet_[*other].load() + limits_.home_spread)) {
      send(response, home, out);
      return true;
    }
  }
  if (!other) {
    if (place_by_eviction(response, left, fair, out))
      return true;
    // A slow worker is better than none.
    return taken_from_.erase(r.id) > 0 && place(response, fair, out);
  }
  // A fair turn is for the group served least, not for who happens to be there.
  const auto stays = fair ? no_slot : resident_before(response, *other, false);
  counters_.resident_turns += stays != no_slot;
  send(stays == no_slot ? response : stays, *other, out);
  return true;
}

void scheduler_policy::overtake(slot_t response, std::uint64_t times) {
  auto& r = responses_[response];
  r.overtakes =
    static_cast<std::uint16_t>(std::min<std::uint64_t>(r.overtakes + times, overtakes_top));
}

bool scheduler_policy::starving(const response_state& r) const {
  return r.overtakes >= std::min(limits_.overtakes_max, overtakes_top);
}

slot_t scheduler_policy::left_behind(slot_t response) const {
  const auto& r = responses_[response];
  if (!taken_from_.empty())
    if (const auto it = taken_from_.find(r.id); it != taken_from_.end())
      return fleet_.find(it->second);
  if (!groups_[r.group].rules.force_migration)
    return no_slot;
  const auto edge = last_edges_.find(r.id);
  const auto worker = edge == last_edges_.end() ? no_slot : fleet_.find(edge->second);
  return worker != no_slot && fleet_.another_holds(chunk_tokens(r), worker) ? worker : no_slot;
}

bool scheduler_policy::place_by_eviction(slot_t response, slot_t left, bool fair,
                                         std::vector<decision>& out) {
  const auto& r = responses_[response];
  const auto tokens = room_tokens(r);
  auto worker = r.kv_worker;
  if (worker == no_slot || r.spilled || worker == left || !fleet_[worker].open()
      || fleet_[worker].yielding_tokens() < tokens) {
    const auto best = fleet_.roomiest_if_yielding(left);
    if (best.room < tokens)
      return false;
    worker = best.slot;
    if (worker == unyielding_ && !starving(r))
      return false;
    if (const auto stays = resident_before(response, worker, true); stays != no_slot) {
      if (fair)
        return false;
      ++counters_.resident_turns;
      overtake(response, 1);
      response = stays;
    } else if (limits_.resident_bonus_tokens > 0 && !starving(r) && fleet_[worker].load() > 0) {
      unyielding_ = worker;
      return false; // who is parked there can go on as soon as something there ends
    }
  }
  evict_for(response, worker, room_tokens(responses_[response]), out);
  send(response, worker, out);
  return true;
}

slot_t scheduler_policy::resident_before(slot_t response, slot_t worker, bool evicting) const {
  const auto& w = fleet_[worker];
  if (limits_.resident_bonus_tokens == 0)
    return no_slot;
  const auto& ahead = responses_[response];
  const auto rank = line_.rank(ahead);
  auto tries = resident_tries;
  for (auto it = w.parked.rbegin(); it != w.parked.rend() && tries > 0; ++it, --tries) {
    const auto near = std::uint64_t{it->rank} + limits_.resident_bonus_tokens >= rank;
    if (!near && (!evicting || starving(ahead)))
      break;
    const auto& r = responses_[it->slot];
    const auto room = evicting ? w.yielding_tokens() : w.tokens(w.free_blocks() + r.kv_blocks);
    if (r.at == phase::waiting && room_tokens(r) <= room && left_behind(it->slot) != worker)
      return it->slot;
  }
  return no_slot;
}

void scheduler_policy::evict_for(slot_t response, slot_t worker, std::uint64_t tokens,
                                 std::vector<decision>& out) {
  const auto& w = fleet_[worker];
  const auto& r = responses_[response];
  const auto own = r.kv_worker == worker ? r.kv_blocks : 0;
  while (w.tokens(w.free_blocks() + own) < tokens) {
    auto victim = w.parked.begin();
    if (victim != w.parked.end() && victim->slot == response)
      ++victim;
    ROLLCAST_CHECK(victim != w.parked.end());
    const auto slot = victim->slot;
    const auto& given_up = responses_[slot];
    ++counters_.evictions;
    if (fleet_.can_spill(slot)
        && spilling_pays(given_up.context_tokens(), w.kv_bytes_per_token, w.prices)) {
      out.emplace_back(spill{w.id, given_up.id, given_up.kv_attempt});
      spill_parked(slot);
      ++counters_.spills;
      continue;
    }
    out.emplace_back(release{w.id, given_up.id, given_up.kv_attempt});
    lose_parked(slot);
  }
}

void scheduler_policy::send(slot_t response, slot_t worker, std::vector<decision>& out) {
  auto& r = responses_[response];
  const auto home = r.kv_worker;
  auto kv = kv_source::recompute;
  worker_id from;
  if (home == worker) {
    kv = kv_source::resume;
    counters_.restores += r.spilled;
    fleet_.unpark(response);
    ++counters_.resumes;
  } else if (home != no_slot && pulls(r, worker)) {
    kv = kv_source::pull;
    from = fleet_[home].id;
    fleet_.pin(response);
    ++counters_.migrations;
  } else if (home != no_slot) {
    // Computed again elsewhere, so the copy at home only takes room.
    out.emplace_back(release{fleet_[home].id, r.id, r.kv_attempt});
    fleet_.unpark(response);
  }
  if (kv == kv_source::recompute && r.tokens_done > 0) {
    ++counters_.recomputes;
    counters_.recomputed_tokens += r.context_tokens();
  }
  auto d = begin(response, worker, blocks_for(room_tokens(r), fleet_[worker].block_tokens));
  d.kv = kv;
  d.from = from;
  out.emplace_back(d);
}

bool scheduler_policy::pulls(const response_state& r, slot_t target) const {
  if (r.pull_failed)
    return false;
  const auto& home = fleet_[r.kv_worker];
  return groups_[r.group].rules.force_migration
         || moving_is_cheaper(r.context_tokens(), home.kv_bytes_per_token, fleet_[target].prices,
                              r.spilled ? &home.prices : nullptr);
}

dispatch scheduler_policy::begin(slot_t response, slot_t worker, std::uint32_t kv_blocks) {
  auto& r = responses_[response];
  line_.remove(response);
  unyielding_ = no_slot;
  r.at = phase::running;
  ++r.attempt;
  r.overtakes = 0;
  r.cut_asked = false;
  if (!taken_from_.empty())
    taken_from_.erase(r.id);
  fleet_.start(response, worker, kv_blocks);
  const auto tokens_now = budget(r);
  line_.serve(r.group, tokens_now);
  ++running_;
  ++counters_.dispatches;
  return {r.id, fleet_[worker].id, r.attempt, tokens_now, kv_source::recompute, {}, kv_blocks};
}

// -- slow workers ---------------------------------------------------------------------------------

void scheduler_policy::plan_cuts(std::vector<decision>& out) {
  // Once for as many news as there are workers, so that a large fleet is not looked through at
  // each.
  if (limits_.slow_factor == 0 || pace_news_ < fleet_.size() || line_.size() > 0
      || out.size() >= limits_.decisions_per_plan)
    return;
  pace_news_ = 0;
  const auto fast = fastest_open();
  if (fast == no_slot)
    return;
  const auto enough = saturating_mul(fleet_[fast].token_ns, limits_.slow_factor);
  for (const auto slow : fleet_.live()) {
    if (slow == fast || fleet_[slow].token_ns < enough)
      continue;
    const auto response = worth_cutting(slow, fast);
    if (response == no_slot)
      continue;
    auto& r = responses_[response];
    r.cut_asked = true;
    ++counters_.cuts;
    out.emplace_back(cut{fleet_[slow].id, r.id, r.attempt});
    return; // one at a time: what it does to both is seen in the next figures
  }
}

slot_t scheduler_policy::fastest_open() const {
  auto best = no_slot;
  for (const auto worker : fleet_.live()) {
    const auto& w = fleet_[worker];
    if (!w.open() || w.token_ns == 0)
      continue;
    if (best == no_slot
        || std::pair{w.token_ns, w.id} < std::pair{fleet_[best].token_ns, fleet_[best].id})
      best = worker;
  }
  return best;
}

slot_t scheduler_policy::worth_cutting(slot_t slow, slot_t fast) const {
  auto best = no_slot;
  std::uint32_t most = 0;
  for (const auto response : fleet_[slow].running) {
    const auto& r = responses_[response];
    const auto& rules = groups_[r.group].rules;
    if (r.cut_asked || rules.how == mode::static_ || room_tokens(r) > fleet_[fast].free_tokens())
      continue;
    const auto rest = r.tokens_max - r.tokens_done;
    if (best == no_slot || rest > most || (rest == most && r.id < responses_[best].id)) {
      best = response;
      most = rest;
    }
  }
  return best;
}

std::uint32_t scheduler_policy::budget(const response_state& r) const {
  const auto& rules = groups_[r.group].rules;
  return chunk_budget(rules.how == mode::static_ ? 0 : rules.chunk_tokens, r.tokens_done,
                      r.tokens_max);
}

std::uint64_t scheduler_policy::chunk_tokens(const response_state& r) const {
  return r.context_tokens() + budget(r);
}

std::uint64_t scheduler_policy::room_tokens(const response_state& r) const {
  const auto ahead =
    reserved_tokens(r.tokens_done + budget(r), r.tokens_max, limits_.reserve_tokens);
  const auto room = std::min(std::uint64_t{r.prompt_tokens} + ahead, fleet_.largest_tokens());
  return std::max(room, chunk_tokens(r));
}

} // namespace rollcast::policy
