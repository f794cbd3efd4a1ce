#include "cluster/policy/waiting_line.hpp"

#include "cluster/policy/cost.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <limits>

namespace rollcast::policy {

namespace {

constexpr std::uint32_t top = std::numeric_limits<std::uint32_t>::max();

/// Whoever has KV parked ranks so much above all who have none; remainders are held below it.
constexpr std::uint32_t resident_rank = 1u << 30;
/// Service is counted in so many parts of a token, so that a share of it is a whole number.
constexpr std::uint64_t service_parts = 64;

bool anybody_waits(const group_state& g) {
  return g.probe_waiting != no_slot || !g.waiting.empty();
}

} // namespace

std::uint32_t waiting_line::estimate(const response_state& r) const {
  const auto& g = groups_[r.group];
  if (g.rules.how == mode::oracle) {
    const auto known = expected_.find(r.id);
    return known == expected_.end() ? r.tokens_max : known->second;
  }
  return std::min(group_length(g), r.tokens_max);
}

std::uint32_t waiting_line::group_length(const group_state& g) const {
  if (g.told > g.furthest && g.told >= g.longest_finished)
    return g.told;
  // The first members to finish are the short ones, so an unfinished one says as much: lengths have
  // heavy tails, and what has run for long is expected to run for long again.
  const auto ahead = std::min(std::uint64_t{outlook_} * g.furthest, std::uint64_t{top});
  return std::max(g.longest_finished, static_cast<std::uint32_t>(ahead));
}

std::uint32_t waiting_line::shortness(const response_state& r) const {
  const auto& g = groups_[r.group];
  if (g.rules.how == mode::divided)
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(g.sequence, top));
  const auto left =
    std::min(expected_remaining(estimate(r), r.tokens_done, r.tokens_max), resident_rank - 1);
  return (r.resident ? top / 2 : top / 2 + resident_rank) - left;
}

std::uint32_t waiting_line::turn(const response_state& r) const {
  switch (groups_[r.group].rules.how) {
    case mode::divided: return 0; // the lowest id is the first that was submitted
    case mode::oracle: return shortness(r);
    default: return r.resident ? r.tokens_done : r.tokens_done + resident_rank;
  }
}

std::uint32_t waiting_line::rank(const response_state& r) const {
  // Tokens stay below 2^31, so every probe ranks above every remainder.
  return r.probe ? top - r.tokens_done : top - shortness(r);
}

void waiting_line::add(slot_t response) {
  auto& r = responses_[response];
  auto& g = groups_[r.group];
  r.resident = r.kv_worker != no_slot && !r.spilled;
  ++size_;
  if (g.rules.how == mode::static_) {
    static_.insert({g.sequence, r.id, response});
    return;
  }
  ++changes_;
  if (r.probe) {
    g.probe_waiting = response;
    probes_.insert({r.id, r.tokens_done, response});
  } else {
    const member_entry entry{turn(r), response, r.id};
    g.waiting.insert(std::upper_bound(g.waiting.begin(), g.waiting.end(), entry), entry);
    stand(r.group);
  }
  list_served(r.group);
}

void waiting_line::remove(slot_t response) {
  const auto& r = responses_[response];
  auto& g = groups_[r.group];
  ROLLCAST_CHECK(size_ > 0);
  --size_;
  if (g.rules.how == mode::static_) {
    ROLLCAST_CHECK(static_.erase({g.sequence, r.id, response}) == 1);
    return;
  }
  ++changes_;
  if (r.probe) {
    g.probe_waiting = no_slot;
    ROLLCAST_CHECK(probes_.erase({r.id, r.tokens_done, response}) == 1);
  } else {
    const member_entry entry{turn(r), response, r.id};
    const auto it = std::lower_bound(g.waiting.begin(), g.waiting.end(), entry);
    ROLLCAST_CHECK(it != g.waiting.end() && it->slot == response);
    g.waiting.erase(it);
    stand(r.group);
  }
}

void waiting_line::stand(slot_t group) {
  auto& g = groups_[group];
  const auto key = g.waiting.empty() ? 0 : shortness(responses_[g.waiting.back().slot]);
  if (g.ready && !g.waiting.empty() && key == g.ready_key)
    return;
  if (g.ready)
    ready_.erase({g.id, g.ready_key, group});
  g.ready = !g.waiting.empty();
  g.ready_key = key;
  if (g.ready)
    ready_.insert({g.id, key, group});
}

void waiting_line::list_served(slot_t group) {
  auto& g = groups_[group];
  // Rule 3 mends what a wrong estimate does; only mode context has one, unless it was told.
  if (g.served_listed || g.rules.how != mode::context || g.told > 0)
    return;
  served_.insert({g.served, g.id, group});
  g.served_listed = true;
  g.served_key = g.served;
}

void waiting_line::serve(slot_t group, std::uint32_t tokens) {
  // Shared among the live members: the last long one of a group waits no longer for what its
  // siblings were given.
  auto& g = groups_[group];
  g.served += service_parts * tokens / std::max(g.live, 1u);
}

void waiting_line::reestimate(slot_t group) {
  ++changes_;
  stand(group);
}

void waiting_line::forget(slot_t group) {
  auto& g = groups_[group];
  ROLLCAST_CHECK(!anybody_waits(g));
  if (g.served_listed)
    served_.erase({g.served_key, g.id, group});
  g.served_listed = false;
}

slot_t waiting_line::first(cursor& at) const {
  if (at.changes != changes_) {
    at.probe = at.passed_probe ? probes_.upper_bound(*at.passed_probe) : probes_.begin();
    at.group = at.passed_group ? ready_.upper_bound(*at.passed_group) : ready_.begin();
    at.changes = changes_;
  }
  if (at.probe != probes_.end())
    return at.probe->slot;
  return at.group == ready_.end() ? no_slot : groups_[at.group->slot].waiting.back().slot;
}

void waiting_line::pass_over(cursor& at) const {
  ROLLCAST_CHECK(at.changes == changes_);
  if (at.probe != probes_.end())
    at.passed_probe = *at.probe++;
  else
    at.passed_group = *at.group++;
}

slot_t waiting_line::least_served() {
  while (!served_.empty()) {
    const auto group = served_.begin()->slot;
    auto& g = groups_[group];
    if (anybody_waits(g) && g.served_key == g.served)
      return g.probe_waiting != no_slot ? g.probe_waiting : g.waiting.back().slot;
    served_.erase(served_.begin());
    g.served_listed = false;
    if (anybody_waits(g))
      list_served(group);
  }
  return no_slot;
}

} // namespace rollcast::policy
