#include "cluster/policy/scheduler_policy.hpp"

#include <algorithm>

// What `scheduler_policy` tells of itself, for metrics, the status command and tests.

namespace rollcast::policy {

namespace {

worker_view view_of(const worker_state& w) {
  return {w.id,           w.load(),          w.slots,
          w.kv_blocks,    w.reserved_blocks, w.parked_blocks,
          w.spill_tokens, w.spilled_tokens,  w.draining};
}

} // namespace

std::vector<worker_view> scheduler_policy::workers() const {
  std::vector<worker_view> out;
  out.reserve(fleet_.size());
  for (const auto slot : fleet_.live())
    out.push_back(view_of(fleet_[slot]));
  std::sort(out.begin(), out.end(),
            [](const worker_view& a, const worker_view& b) { return a.worker < b.worker; });
  return out;
}

std::optional<worker_view> scheduler_policy::worker(worker_id id) const {
  const auto slot = fleet_.find(id);
  return slot == no_slot ? std::nullopt : std::optional{view_of(fleet_[slot])};
}

std::vector<response_id> scheduler_policy::running_on(worker_id id) const {
  std::vector<response_id> out;
  if (const auto slot = fleet_.find(id); slot != no_slot)
    for (const auto response : fleet_[slot].running)
      out.push_back(responses_[response].id);
  std::sort(out.begin(), out.end());
  return out;
}

std::optional<response_view> scheduler_policy::response(response_id id) const {
  const auto slot = response_slots_.find(id);
  if (slot == no_slot)
    return std::nullopt;
  const auto& r = responses_[slot];
  response_view out{r.at, r.tokens_done, r.attempt, {}, {}, false};
  if (r.at == phase::running)
    out.holder = fleet_[r.worker].id;
  if (r.kv_worker != no_slot)
    out.kv_at = fleet_[r.kv_worker].id;
  out.spilled = r.spilled;
  return out;
}

std::optional<std::uint32_t> scheduler_policy::estimate(group_id id) const {
  const auto group = group_slots_.find(id);
  const auto length = group == no_slot ? 0 : line_.group_length(groups_[group]);
  return length == 0 ? std::nullopt : std::optional{length};
}

} // namespace rollcast::policy
