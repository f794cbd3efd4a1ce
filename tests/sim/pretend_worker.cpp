#include "tests/sim/pretend_worker.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace rollcast::sim {

std::string pretend_worker::take(const work_order& order, bool fails, std::uint32_t ticks) {
  const auto& what = order.what;
  auto& seen = seen_[what.response];
  if (what.attempt <= seen)
    return {}; // an order that comes twice, or after its release
  seen = what.attempt;
  const auto kept = parked_.find(what.response);
  const auto at_home = kept != parked_.end();
  if (at_home && what.kv == policy::kv_source::resume
      && kept->second.tokens_done != order.tokens_done)
    return "response " + std::to_string(what.response.value) + " resumes at another token";
  if (at_home && what.kv != policy::kv_source::resume)
    return "response " + std::to_string(what.response.value) + " comes from elsewhere to KV of its";
  if (at_home)
    parked_.erase(kept);
  if (fails || (what.kv == policy::kv_source::resume && !at_home)) {
    failures_.push_back(policy::chunk_failed{what.response, shape_.worker, what.attempt});
    return {};
  }
  running_[what.response] = {order, std::max(ticks, 1u), what.kv == policy::kv_source::pull};
  return overfilled();
}

void pretend_worker::take(const policy::release& r) {
  auto& seen = seen_[r.response];
  seen = std::max(seen, r.attempt);
  if (const auto it = parked_.find(r.response);
      it != parked_.end() && it->second.attempt <= r.attempt)
    parked_.erase(it);
  if (const auto it = running_.find(r.response);
      it != running_.end() && it->second.order.what.attempt <= r.attempt)
    running_.erase(it);
}

std::string pretend_worker::take(const policy::spill& s, bool fails) {
  const auto it = parked_.find(s.response);
  const auto meant = it != parked_.end() && it->second.attempt == s.attempt;
  if (meant && fails && !it->second.spilled) {
    failures_.push_back(policy::kv_lost{s.response, shape_.worker, s.attempt});
    parked_.erase(it);
  } else if (meant) {
    it->second.spilled = true;
  }
  std::uint64_t held = 0;
  for (const auto& [id, kv] : parked_)
    held += kv.spilled ? kv.context : 0;
  return held <= shape_.spill_tokens
           ? std::string{}
           : "worker " + std::to_string(shape_.worker.value) + " spills " + std::to_string(held)
               + " of " + std::to_string(shape_.spill_tokens) + " tokens";
}

void pretend_worker::take(const policy::cut& c, std::uint32_t sixteenths) {
  const auto it = running_.find(c.response);
  if (it == running_.end() || it->second.order.what.attempt != c.attempt)
    return; // it has ended meanwhile
  const auto chunk = it->second;
  running_.erase(it);
  end_early(chunk, sixteenths);
}

void pretend_worker::cut_all(std::uint32_t sixteenths) {
  for (const auto& [id, chunk] : std::exchange(running_, {}))
    end_early(chunk, sixteenths);
}

void pretend_worker::end_early(const running& chunk, std::uint32_t sixteenths) {
  const auto& o = chunk.order;
  // It has not ended, so a token at least is missing.
  const auto most = std::min(o.what.tokens_now, o.length - o.tokens_done) - 1;
  const auto done = o.tokens_done + (chunk.importing ? 0 : most * sixteenths / 16);
  const auto keep = done > o.tokens_done && o.what.kv_blocks > 0;
  if (keep)
    parked_[o.what.response] = {blocks(o.prompt_tokens + done), done, o.what.attempt,
                                o.prompt_tokens + done, false};
  failures_.push_back(
    policy::chunk_finished{o.what.response, shape_.worker, o.what.attempt, done, false, keep});
}

void pretend_worker::lose_parked(std::uint64_t pick, std::vector<policy::event>& says) {
  if (parked_.empty())
    return;
  const auto it = std::next(parked_.begin(), static_cast<std::ptrdiff_t>(pick % parked_.size()));
  says.push_back(policy::kv_lost{it->first, shape_.worker, it->second.attempt});
  parked_.erase(it);
}

std::string pretend_worker::overfilled() const {
  std::uint32_t held = 0;
  std::uint32_t slots = 0;
  for (const auto& [id, chunk] : running_) {
    held += chunk.order.what.kv_blocks;
    slots += chunk.order.what.kv_blocks > 0;
  }
  for (const auto& [id, kv] : parked_)
    held += kv.spilled ? 0 : kv.blocks;
  if (held <= shape_.kv_blocks && slots <= shape_.slots)
    return {};
  return "worker " + std::to_string(shape_.worker.value) + " holds " + std::to_string(held) + " of "
         + std::to_string(shape_.kv_blocks) + " blocks and " + std::to_string(slots) + " of "
         + std::to_string(shape_.slots) + " slots";
}

void pretend_worker::finish(const running& chunk, bool keeps_kv, std::vector<policy::event>& says) {
  const auto& what = chunk.order.what;
  const auto done = std::min(chunk.order.tokens_done + what.tokens_now, chunk.order.length);
  const auto complete = done == chunk.order.length;
  const auto keep = keeps_kv && !complete && what.kv_blocks > 0;
  if (keep)
    parked_[what.response] = {blocks(chunk.order.prompt_tokens + done), done, what.attempt,
                              chunk.order.prompt_tokens + done, false};
  says.push_back(
    policy::chunk_finished{what.response, shape_.worker, what.attempt, done, complete, keep});
}

} // namespace rollcast::sim
