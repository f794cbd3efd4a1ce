#include "cluster/policy/fleet.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <limits>

namespace rollcast::policy {

namespace {

/// Takes an element out of an unordered list by moving the last into its place.
template <class Place>
void take_out(std::vector<slot_t>& list, std::uint32_t at, Place place_of) {
  ROLLCAST_CHECK(at < list.size());
  list[at] = list.back();
  place_of(list[at]) = at;
  list.pop_back();
}

} // namespace

void fleet::add(const worker_joined& e, const kv_prices& prices) {
  worker_state w;
  w.id = e.worker;
  w.kv_blocks = e.kv_blocks;
  w.block_tokens = e.block_tokens;
  w.slots = e.slots;
  w.prices = prices;
  w.kv_bytes_per_token = e.kv_bytes_per_token;
  w.spill_tokens = e.spill_tokens;
  w.spill_page_tokens = std::max(e.spill_page_tokens, 1u);
  const auto slot = workers_.add(std::move(w));
  by_id_.insert(e.worker, slot);
  live_.push_back(slot);
  accepting_.emplace(e.worker, slot);
  capacities_.insert(workers_[slot].tokens(e.kv_blocks));
  by_bound_.emplace(0u, e.worker);
  refresh(slot);
}

void fleet::stop_accepting(worker_state& w) {
  if (accepting_.erase(w.id) == 0)
    return;
  capacities_.erase(capacities_.find(w.tokens(w.kv_blocks)));
  by_bound_.erase({w.bound_groups, w.id});
}

void fleet::drain(slot_t worker) {
  stop_accepting(workers_[worker]);
  workers_[worker].draining = true;
  refresh(worker);
}

void fleet::remove(slot_t worker) {
  auto& w = workers_[worker];
  ROLLCAST_CHECK(w.running.empty() && w.pinned.empty() && w.parked.empty());
  ROLLCAST_CHECK(w.reserved_blocks == 0 && w.parked_blocks == 0);
  ROLLCAST_CHECK(w.spilled.empty() && w.spilled_tokens == 0);
  drain(worker);
  by_id_.erase(w.id);
  live_.erase(std::find(live_.begin(), live_.end(), worker));
  workers_.erase(worker);
}

void fleet::start(slot_t response, slot_t worker, std::uint32_t reserved_blocks) {
  auto& r = responses_[response];
  auto& w = workers_[worker];
  ROLLCAST_CHECK(reserved_blocks <= w.free_blocks());
  r.worker = worker;
  r.kv_reserved = reserved_blocks;
  r.place = w.load();
  w.running.push_back(response);
  w.reserved_blocks += reserved_blocks;
  unsettle(worker);
}

void fleet::stop(slot_t response) {
  auto& r = responses_[response];
  const auto worker = r.worker;
  auto& w = workers_[worker];
  take_out(
    w.running, r.place, [this](slot_t s) -> auto& { return responses_[s].place; });
  w.reserved_blocks -= r.kv_reserved;
  r.worker = no_slot;
  r.kv_reserved = 0;
  unsettle(worker);
}

void fleet::park(slot_t response, slot_t worker, std::uint32_t blocks, std::uint32_t rank) {
  auto& r = responses_[response];
  auto& w = workers_[worker];
  ROLLCAST_CHECK(r.kv_worker == no_slot && blocks <= w.free_blocks());
  r.kv_worker = worker;
  r.kv_blocks = blocks;
  r.kv_attempt = r.attempt;
  r.kv_key = rank;
  w.parked.insert({r.id, rank, response});
  w.parked_blocks += blocks;
  unsettle(worker);
}

void fleet::unpark(slot_t response) {
  auto& r = responses_[response];
  const auto worker = r.kv_worker;
  auto& w = workers_[worker];
  leave_list(response);
  w.parked_blocks -= r.kv_blocks;
  forget_home(response);
  unsettle(worker);
}

bool fleet::can_spill(slot_t response) const {
  const auto& r = responses_[response];
  const auto& w = workers_[r.kv_worker];
  return !r.spilled && w.spill_need(r.context_tokens()) <= w.spill_tokens - w.spilled_tokens;
}

void fleet::spill(slot_t response) {
  auto& r = responses_[response];
  auto& w = workers_[r.kv_worker];
  ROLLCAST_CHECK(can_spill(response));
  leave_list(response);
  w.parked_blocks -= r.kv_blocks;
  r.kv_blocks = 0;
  r.spilled = true;
  w.spilled_tokens += w.spill_need(r.context_tokens());
  enter_spilled(response);
  unsettle(r.kv_worker);
}

void fleet::leave_list(slot_t response) {
  auto& r = responses_[response];
  auto& w = workers_[r.kv_worker];
  if (r.spilled)
    take_out(
      w.spilled, r.kv_key, [this](slot_t s) -> auto& { return responses_[s].kv_key; });
  else
    ROLLCAST_CHECK(w.parked.erase({r.id, r.kv_key, response}) == 1);
}

void fleet::enter_spilled(slot_t response) {
  auto& r = responses_[response];
  auto& w = workers_[r.kv_worker];
  r.kv_key = static_cast<std::uint32_t>(w.spilled.size());
  w.spilled.push_back(response);
}

void fleet::forget_home(slot_t response) {
  auto& r = responses_[response];
  auto& w = workers_[r.kv_worker];
  if (r.spilled)
    w.spilled_tokens -= w.spill_need(r.context_tokens());
  r.spilled = false;
  r.kv_worker = no_slot;
  r.kv_blocks = 0;
}

void fleet::rerank(slot_t response, std::uint32_t rank) {
  auto& r = responses_[response];
  if (r.kv_key == rank)
    return;
  auto& parked = workers_[r.kv_worker].parked;
  ROLLCAST_CHECK(parked.erase({r.id, r.kv_key, response}) == 1);
  parked.insert({r.id, rank, response});
  r.kv_key = rank;
}

void fleet::pin(slot_t response) {
  auto& r = responses_[response];
  auto& w = workers_[r.kv_worker];
  leave_list(response);
  r.kv_key = static_cast<std::uint32_t>(w.pinned.size());
  w.pinned.push_back(response);
  w.pinned_blocks += r.kv_blocks;
  unsettle(r.kv_worker);
}

void fleet::unpin(slot_t response) {
  auto& r = responses_[response];
  const auto worker = r.kv_worker;
  auto& w = workers_[worker];
  take_out(
    w.pinned, r.kv_key, [this](slot_t s) -> auto& { return responses_[s].kv_key; });
  w.pinned_blocks -= r.kv_blocks;
  w.parked_blocks -= r.kv_blocks;
  forget_home(response);
  unsettle(worker);
}

void fleet::unpin_to_home(slot_t response, std::uint32_t rank) {
  auto& r = responses_[response];
  auto& w = workers_[r.kv_worker];
  take_out(
    w.pinned, r.kv_key, [this](slot_t s) -> auto& { return responses_[s].kv_key; });
  w.pinned_blocks -= r.kv_blocks;
  if (r.spilled)
    return enter_spilled(response);
  r.kv_key = rank;
  w.parked.insert({r.id, rank, response});
  unsettle(r.kv_worker);
}

std::uint64_t fleet::largest_tokens() const {
  return capacities_.empty() ? 0 : *capacities_.rbegin();
}

bool fleet::another_holds(std::uint64_t tokens, slot_t except) const {
  const auto& w = workers_[except];
  auto large = capacities_.lower_bound(tokens);
  if (large != capacities_.end() && !w.draining && w.tokens(w.kv_blocks) >= tokens)
    ++large; // one of them is `except`
  return large != capacities_.end();
}

std::optional<slot_t> fleet::least_loaded(std::uint64_t tokens, slot_t except) const {
  if (roomiest_.best().room < tokens)
    return std::nullopt;
  return by_load_.best(tokens, except);
}

slot_t fleet::next_in_round() {
  auto it = accepting_.upper_bound(round_last_);
  if (it == accepting_.end())
    it = accepting_.begin();
  round_last_ = it->first;
  return it->second;
}

slot_t fleet::least_bound() const {
  return accepting_.at(by_bound_.begin()->second);
}

void fleet::bind(slot_t worker) {
  auto& w = workers_[worker];
  const auto listed = by_bound_.erase({w.bound_groups, w.id}) == 1;
  ++w.bound_groups;
  if (listed)
    by_bound_.emplace(w.bound_groups, w.id);
}

void fleet::unbind(slot_t worker) {
  auto& w = workers_[worker];
  ROLLCAST_CHECK(w.bound_groups > 0);
  const auto listed = by_bound_.erase({w.bound_groups, w.id}) == 1;
  --w.bound_groups;
  if (listed)
    by_bound_.emplace(w.bound_groups, w.id);
}

void fleet::unsettle(slot_t worker) {
  auto& w = workers_[worker];
  ROLLCAST_CHECK(std::uint64_t{w.reserved_blocks} + w.parked_blocks <= w.kv_blocks);
  if (!w.unsettled)
    unsettled_.push_back(worker);
  w.unsettled = true;
}

void fleet::settle() {
  for (const auto worker : unsettled_)
    refresh(worker);
  unsettled_.clear();
}

void fleet::refresh(slot_t worker) {
  auto& w = workers_[worker];
  w.unsettled = false;
  const auto open = w.open();
  const auto room = w.free_tokens();
  roomiest_.set(worker, w.id.value, open ? room : 0);
  yielding_.set(worker, w.id.value, open ? w.yielding_tokens() : 0);
  if (open)
    by_load_.set(worker, w.id, w.load(), room);
  else
    by_load_.erase(worker);
}

} // namespace rollcast::policy
