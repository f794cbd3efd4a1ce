#include "cluster/policy/waiting_line.hpp"

#include "cluster/policy/cost.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <limits>

namespace rollcast::policy {

namespace {

constexpr std::uint32_t top = std::numeric_limits<std::uint32_t>::max();

bool anybody_waits(const group_state& g) {
  return g.probe_waiting != no_slot || !g.waiting.empty();
}

} // namespace

std::uint32_t waiting_line::estimate(const response_state& r) const {
  const auto& g = groups_[r.group];
  return g.measured ? g.longest_finished : r.tokens_max;
}

std::uint32_t waiting_line::shortness(const response_state& r) const {
  return top - expected_remaining(estimate(r), r.tokens_done, r.tokens_max);
}

std::uint64_t waiting_line::rank(const response_state& r) const {
  if (r.probe)
    return (std::uint64_t{1} << 32) + (top - r.tokens_done);
  return top - shortness(r);
}

void waiting_line::add(slot_t response) {
  const auto& r = responses_[response];
  auto& g = groups_[r.group];
  ++size_;
  if (g.rules.how == mode::static_) {
    static_.insert({g.sequence, r.id, response});
    return;
  }
  const auto waited = anybody_waits(g);
  if (r.probe) {
    g.probe_waiting = response;
    probes_.insert({r.tokens_done, r.id, response});
  } else {
    const member_entry entry{r.tokens_done, response, r.id};
    g.waiting.insert(std::upper_bound(g.waiting.begin(), g.waiting.end(), entry), entry);
    stand(r.group);
  }
  list_served(r.group, waited);
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
  if (r.probe) {
    g.probe_waiting = no_slot;
    ROLLCAST_CHECK(probes_.erase({r.tokens_done, r.id, response}) == 1);
  } else {
    const member_entry entry{r.tokens_done, response, r.id};
    const auto it = std::lower_bound(g.waiting.begin(), g.waiting.end(), entry);
    ROLLCAST_CHECK(it != g.waiting.end() && it->slot == response);
    g.waiting.erase(it);
    stand(r.group);
  }
  list_served(r.group, true);
}

void waiting_line::stand(slot_t group) {
  auto& g = groups_[group];
  const ready_entry old{g.ready_key, g.id, group};
  if (g.waiting.empty()) {
    if (g.ready)
      ready_.erase(old);
    g.ready = false;
    return;
  }
  const auto key = shortness(responses_[g.waiting.back().slot]);
  if (g.ready && key == g.ready_key)
    return;
  if (g.ready) {
    auto node = ready_.extract(old); // keeps the allocation
    node.value().shortness = key;
    ready_.insert(std::move(node));
  } else {
    ready_.insert({key, g.id, group});
  }
  g.ready = true;
  g.ready_key = key;
}

void waiting_line::list_served(slot_t group, bool waited_before) {
  const auto& g = groups_[group];
  const auto waits = anybody_waits(g);
  if (waits && !waited_before)
    served_.insert({g.served_tokens, g.id, group});
  else if (!waits && waited_before)
    served_.erase({g.served_tokens, g.id, group});
}

void waiting_line::serve(slot_t group, std::uint32_t tokens) {
  auto& g = groups_[group];
  if (anybody_waits(g)) {
    auto node = served_.extract({g.served_tokens, g.id, group});
    node.value().tokens += tokens;
    served_.insert(std::move(node));
  }
  g.served_tokens += tokens;
}

void waiting_line::reestimate(slot_t group) {
  stand(group);
}

slot_t waiting_line::first(const cursor& at) const {
  const auto probe =
    at.probe ? probes_.upper_bound({at.probe->first, at.probe->second, no_slot}) : probes_.begin();
  if (probe != probes_.end())
    return probe->slot;
  const auto ready =
    at.group ? ready_.upper_bound({at.group->first, at.group->second, no_slot}) : ready_.begin();
  return ready == ready_.end() ? no_slot : groups_[ready->slot].waiting.back().slot;
}

void waiting_line::pass_over(cursor& at, slot_t response) const {
  const auto& r = responses_[response];
  if (r.probe)
    at.probe = {r.tokens_done, r.id};
  else
    at.group = {groups_[r.group].ready_key, groups_[r.group].id};
}

slot_t waiting_line::least_served() const {
  if (served_.empty())
    return no_slot;
  const auto& g = groups_[served_.begin()->slot];
  return g.probe_waiting != no_slot ? g.probe_waiting : g.waiting.back().slot;
}

} // namespace rollcast::policy
