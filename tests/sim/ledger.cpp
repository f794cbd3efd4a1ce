#include "tests/sim/ledger.hpp"

#include <algorithm>

namespace rollcast::sim {

namespace {

std::string name(response_id r) {
  return "response " + std::to_string(r.value);
}
std::string name(worker_id w) {
  return "worker " + std::to_string(w.value);
}

} // namespace

std::string check_room(const ledger& book, const policy::scheduler_policy& policy) {
  for (const auto& w : policy.workers()) {
    if (std::uint64_t{w.reserved_blocks} + w.parked_blocks > w.kv_blocks)
      return name(w.worker) + " is promised more than its " + std::to_string(w.kv_blocks)
             + " blocks";
    if (w.spilled_tokens > w.spill_tokens)
      return name(w.worker) + " is promised more than its spill space";
    if (!book.workers.contains(w.worker))
      return name(w.worker) + " is known to the policy and gone";
  }
  return {};
}

std::string check_nothing_lost(const ledger& book, const policy::scheduler_policy& policy) {
  std::size_t live = 0;
  std::size_t held = 0;
  for (const auto& [id, r] : book.responses) {
    if (r.finished > 1)
      return name(id) + " finished twice";
    if (r.ended())
      continue;
    ++live;
    held += r.holder.has_value();
    const auto seen = policy.response(id);
    if (!seen)
      return name(id) + " was forgotten";
    if (seen->holder != r.holder)
      return name(id) + " is held by another than the last dispatch said";
    if (seen->tokens_done != r.tokens_done)
      return name(id) + " has another number of tokens than was reported";
  }
  if (policy.running() != held || policy.waiting() + policy.running() != live)
    return "waiting " + std::to_string(policy.waiting()) + " + running "
           + std::to_string(policy.running()) + " is not " + std::to_string(live) + " live, "
           + std::to_string(held) + " held";
  return {};
}

std::string check_dispatch(const ledger& book, const policy::dispatch& d) {
  const auto found = book.responses.find(d.response);
  if (found == book.responses.end() || found->second.ended())
    return name(d.response) + " is dispatched and does not live";
  const auto& r = found->second;
  if (r.holder)
    return name(d.response) + " is dispatched while " + name(*r.holder) + " holds it";
  if (d.attempt != r.attempt + 1)
    return name(d.response) + " skips to attempt " + std::to_string(d.attempt);
  const auto worker = book.workers.find(d.worker);
  if (worker == book.workers.end())
    return name(d.response) + " is sent to " + name(d.worker) + ", which is gone";
  const auto rest = r.terms.tokens_max - r.tokens_done;
  const auto whole = r.rules.how == policy::mode::static_ || r.rules.chunk_tokens == 0;
  if (d.tokens_now != (whole ? rest : std::min(rest, r.rules.chunk_tokens)))
    return name(d.response) + " is given a chunk of " + std::to_string(d.tokens_now);
  const auto tokens = r.terms.prompt_tokens + r.tokens_done + d.tokens_now;
  const auto block = worker->second.block_tokens;
  const auto bound = r.rules.how == policy::mode::static_;
  const auto need = bound ? 0 : (tokens + block - 1) / block;
  const auto most = bound ? 0 : std::max(need, need + (book.reserve_tokens + block - 1) / block);
  if (d.kv_blocks < need || d.kv_blocks > most)
    return name(d.response) + " reserves " + std::to_string(d.kv_blocks) + " blocks, needs "
           + std::to_string(need) + ", may have " + std::to_string(most);
  if (d.kv == policy::kv_source::pull && (d.from == d.worker || !book.workers.contains(d.from)))
    return name(d.response) + " is pulled from " + name(d.from);
  return {};
}

std::string check_release(const ledger& book, const policy::release& r) {
  const auto found = book.responses.find(r.response);
  if (found == book.responses.end() || found->second.ended())
    return {};
  if (found->second.pulls == r.worker)
    return name(r.worker) + " releases " + name(r.response) + " before its move is confirmed";
  if (found->second.holder == r.worker && r.attempt >= found->second.attempt)
    return name(r.worker) + " is told to drop " + name(r.response) + ", which it runs";
  return {};
}

std::string check_spill(const ledger& book, const policy::spill& s) {
  const auto found = book.responses.find(s.response);
  if (found == book.responses.end() || found->second.ended() || found->second.holder)
    return name(s.response) + " is spilled and does not wait";
  if (s.attempt > found->second.attempt)
    return name(s.response) + " is spilled with the KV of an attempt to come";
  const auto worker = book.workers.find(s.worker);
  if (worker == book.workers.end() || worker->second.spill_tokens == 0)
    return name(s.worker) + " is told to spill and has no space for it";
  return {};
}

std::string check_cut(const ledger& book, const policy::cut& c) {
  const auto found = book.responses.find(c.response);
  if (found == book.responses.end() || found->second.holder != c.worker
      || found->second.attempt != c.attempt)
    return name(c.worker) + " is told to cut " + name(c.response) + ", which it does not run";
  return {};
}

std::string check_report(const ledger& book, response_id response, worker_id worker,
                         std::uint32_t attempt) {
  const auto found = book.responses.find(response);
  if (found == book.responses.end() || found->second.ended())
    return name(response) + " is believed after its end";
  if (found->second.holder != worker || found->second.attempt != attempt)
    return name(worker) + " is believed about " + name(response) + ", which it does not hold";
  return {};
}

namespace {

struct writer {
  ledger& book;

  void operator()(const policy::worker_joined& e) { book.workers.emplace(e.worker, e); }
  void operator()(const policy::worker_lost& e) {
    book.workers.erase(e.worker);
    for (auto& [id, r] : book.responses) {
      if (r.holder == e.worker)
        let_go(r);
      if (r.pulls == e.worker)
        r.pulls.reset();
    }
  }
  void operator()(const policy::worker_draining&) {}
  void operator()(const policy::worker_priced&) {}
  void operator()(const policy::worker_paced&) {}
  void operator()(const policy::response_submitted& e) {
    ledger::response r;
    r.terms = e;
    r.rules = e.rules.value_or(policy::group_rules{});
    r.tokens_done = e.tokens_done;
    book.responses.emplace(e.response, r);
  }
  void operator()(const policy::chunk_finished& e) {
    auto& r = book.responses.at(e.response);
    let_go(r);
    r.tokens_done = e.tokens_done;
    r.finished += e.complete;
  }
  void operator()(const policy::chunk_failed& e) { let_go(book.responses.at(e.response)); }
  void operator()(const policy::kv_moved& e) { book.responses.at(e.response).pulls.reset(); }
  void operator()(const policy::kv_lost& e) {
    auto& r = book.responses.at(e.response);
    if (r.pulls == e.worker)
      r.pulls.reset();
  }
  void operator()(const policy::response_cancelled& e) { cancel(book.responses.at(e.response)); }
  void operator()(const policy::group_closed& e) {
    for (auto& [id, r] : book.responses)
      if (r.terms.group == e.group && !r.ended())
        cancel(r);
  }
  void operator()(const policy::release&) {}
  void operator()(const policy::spill&) {}
  void operator()(const policy::cut&) {}
  void operator()(const policy::dispatch& d) {
    auto& r = book.responses.at(d.response);
    r.holder = d.worker;
    r.attempt = d.attempt;
    if (d.kv == policy::kv_source::pull)
      r.pulls = d.from;
  }

  static void let_go(ledger::response& r) {
    r.holder.reset();
    r.pulls.reset();
  }
  static void cancel(ledger::response& r) {
    let_go(r);
    r.cancelled = true;
  }
};

} // namespace

void write_down(ledger& book, const policy::event& accepted) {
  std::visit(writer{book}, accepted);
}
void write_down(ledger& book, const policy::decision& decided) {
  std::visit(writer{book}, decided);
}

} // namespace rollcast::sim
