#include "actors/scheduler_shell.hpp"
#include "cluster/batch/client_share.hpp"
#include "cluster/policy/mode_names.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace rollcast::shell {
namespace {

const std::string& policy_of(const scheduler_state& st, const batch_record& batch) {
  return batch.spec.policy.empty() ? st.options.default_policy : batch.spec.policy;
}

policy::group_rules rules_of(const scheduler_state& st, const batch_record& batch) {
  // `check_batch` has refused names that are none.
  return {policy::find_mode(policy_of(st, batch)).value_or(policy::mode::context),
          batch.spec.chunk_tokens.value_or(st.options.chunk_tokens), batch.spec.force_migration};
}

wire::batch_accepted accepted(const scheduler_state& st, const batch_record& batch) {
  const bool queued = batch.phase == batch_phase::queued;
  return {batch.spec.batch_key, batch.size, batch.acknowledged + 1,
          queued ? st.book->numerics_profile : batch.numerics_profile,
          queued ? batch.spec.required_weight_version : std::optional{batch.weight_version}};
}

/// Every response of the group is over.
void close_group(self_ptr self, group_id group) {
  auto& st = self->state;
  (void)st.policy->on(policy::group_closed{group});
  for (const auto& [id, w] : st.workers)
    self->send(w.handle, atom::gone_v, group);
}

void close_groups(self_ptr self, const batch_record& batch) {
  if (batch.phase == batch_phase::queued)
    return; // the policy never heard of it
  for (std::uint64_t g = 0; g < batch.group_unfinished.size(); ++g)
    if (batch.group_unfinished[g] > 0)
      close_group(self, {batch.first_group + g});
}

void note_end(self_ptr self, const batch_record& batch) {
  const auto summary = self->state.book->summary(batch);
  const auto& m = *self->state.parts.metrics;
  m.batch_makespan_seconds.observe(summary.makespan_s);
  m.batch_tail_seconds.observe(summary.tail_s);
  spdlog::info("batch '{}' ended: {} responses, {} tokens in {:.3f} s", batch.spec.batch_key,
               summary.responses, summary.tokens, summary.makespan_s);
}

/// What follows from ending a batch's unfinished responses.
void note_cancelled(self_ptr self, const batch_record& batch,
                    const std::vector<response_id>& ended) {
  self->state.parts.metrics->responses.cancelled.add(ended.size());
  for (const auto response : ended)
    self->state.misfortunes.erase(response);
  note_end(self, batch);
}

/// An empty cluster that owes nobody a response may become another one, unless it was given
/// weights: its workers come back with older ones. Until it does, nothing queued is promised a
/// profile.
void leave_identity(scheduler_state& st) {
  for (const auto& [id, batch] : st.book->batches())
    if (batch.phase == batch_phase::running)
      return;
  if (st.update || !st.scores.empty() || st.weights_changed
      || (st.parts.weights && st.parts.weights->has_served()))
    return;
  if (st.identity)
    note(st, journal::cluster_identity{});
  st.machine->reset();
  st.identity.reset();
  st.book->numerics_profile.clear();
  st.book->weight_version = 0;
}

/// By group, the length of its longest finished response; 0 is not known.
std::vector<std::uint32_t> longest_finished(const batch_record& batch) {
  std::vector<std::uint32_t> longest(batch.group_unfinished.size());
  for (const auto& r : batch.responses)
    if (r.sequence != 0)
      longest[r.group] = std::max(longest[r.group], static_cast<std::uint32_t>(r.tokens.size()));
  return longest;
}

/// Whether a batch of an earlier scheduler may need a larger worker than those that have come back
/// so far.
bool waits_for_larger(const scheduler_state& st, const batch_record& batch) {
  if (!batch.restored)
    return false;
  auto any = st.identity->model;
  any.kv_tokens_max = std::numeric_limits<std::uint64_t>::max();
  return !check_batch(batch.spec, st.identity->model) && check_batch(batch.spec, any);
}

// -- requests -----------------------------------------------------------------

/// The batch of a key, for one who may ask about it.
result<batch_record*> find_for(self_ptr self, const controller_request& from,
                               const std::string& key) {
  auto& book = *self->state.book;
  if (from.operates)
    return book.find_any(key, from.owner);
  auto own = book.find(key, from.owner);
  if (own)
    return own;
  if (const auto others = book.find_any(key, from.owner);
      !others && others.error().code == errc::unknown_batch)
    return own;
  return fail(errc::not_permitted, "batch '" + key
                                     + "' is another client's; ask with a key of the client that "
                                       "submitted it, or with one that the allow list calls "
                                       "operator");
}

void take(self_ptr self, const controller_request& from, const wire::submit_batch& spec) {
  auto& st = self->state;
  // Not `find_for`: nobody can keep a key from another client by having a batch with it.
  if (!st.book->find(spec.batch_key, from.owner)) {
    auto ok = st.identity ? check_batch(spec, st.identity->model) : check_policy(spec.policy);
    if (ok)
      ok = takes_batches(st);
    if (!ok)
      return answer(self, from, ok.error(), spec.batch_key);
    if (const auto fits = from.client.empty()
                            ? result<void>{}
                            : check_share(*st.book, from.client, from.limits, spec);
        !fits) {
      st.parts.metrics->frames_rejected.over_limit.add();
      return answer(self, from, fits.error(), spec.batch_key);
    }
  }
  const auto batch = st.book->submit(spec, now_ns(self), from.owner);
  if (!batch)
    return answer(self, from, batch.error(), spec.batch_key);
  auto& record = **batch;
  if (record.client.empty())
    record.client = from.client;
  answer(self, from, accepted(st, record));
  st.book->attach(record, from.peer, 0);
  deliver(self, record);
  activate(self);
  plan_soon(self);
}

void take(self_ptr self, const controller_request& from, const wire::cancel_batch& c) {
  auto& st = self->state;
  const auto batch = find_for(self, from, c.batch_key);
  if (!batch)
    return answer(self, from, batch.error(), c.batch_key);
  auto& record = **batch;
  answer(self, from, wire::request_done{});
  if (record.phase == batch_phase::ended)
    return;
  close_groups(self, record);
  note_cancelled(self, record, st.book->cancel(record, now_ns(self)));
  deliver(self, record);
  activate(self);
  plan_soon(self);
}

void take(self_ptr self, const controller_request& from, const wire::ack_results& a) {
  const auto batch = find_for(self, from, a.batch_key);
  if (!batch)
    return answer(self, from, batch.error(), a.batch_key);
  const bool kept = self->state.book->acknowledge(**batch, a.sequence);
  answer(self, from, wire::request_done{});
  if (kept)
    deliver(self, **batch);
}

void take(self_ptr self, const controller_request& from, const wire::resume_results& r) {
  auto& st = self->state;
  const auto batch = find_for(self, from, r.batch_key);
  if (!batch)
    return answer(self, from, batch.error(), r.batch_key);
  if (!st.book->attach(**batch, from.peer, r.after_sequence))
    return answer(
      self, from,
      error{errc::unknown_batch, "batch '" + r.batch_key + "' had failed and is forgotten now", {}},
      r.batch_key);
  // A batch that comes from a journal counts for whoever collects it, if it was nobody's.
  if ((*batch)->client.empty())
    (*batch)->client = from.client;
  answer(self, from, accepted(st, **batch));
  deliver(self, **batch);
}

wire::worker_status status_of(const scheduler_state& st, const worker_id id,
                              const scheduler_state::worker& w) {
  wire::worker_status s;
  s.worker = id;
  s.name = w.hello.name;
  s.state = w.draining ? "draining" : w.routable ? "ready" : "stale";
  s.pid = w.hello.pid;
  s.endpoint = w.hello.data_endpoint;
  s.running = w.last.running;
  s.waiting = w.last.waiting;
  s.kv_blocks_total = w.hello.kv_blocks;
  s.kv_blocks_used = w.last.kv.running;
  s.kv_blocks_parked = w.last.kv.parked;
  if (const auto view = st.policy->worker(id))
    s.kv_tokens_spilled = view->spilled_tokens;
  s.generated_tokens = w.last.stats.generated_tokens;
  s.steps = w.last.stats.steps;
  s.busy_s = static_cast<double>(w.last.stats.busy_ns) * 1e-9;
  s.epoch = w.hello.weight_epoch;
  return s;
}

wire::batch_status status_of(const scheduler_state& st, const batch_record& batch) {
  wire::batch_status s;
  s.batch_key = batch.spec.batch_key;
  s.policy = policy_of(st, batch);
  s.responses = batch.size;
  s.finished = batch.finished_count;
  s.running = batch.running;
  s.generated_tokens = batch.generated_tokens;
  s.waiting = s.responses - s.finished - s.running;
  return s;
}

void take(self_ptr self, const controller_request& from, const wire::get_status&) {
  const auto& st = self->state;
  wire::status_report report;
  report.numerics_profile = st.book->numerics_profile;
  report.weight_version = st.book->weight_version;
  report.model = st.identity ? st.identity->name : "";
  for (const auto& [id, w] : st.workers)
    report.workers.push_back(status_of(st, id, w));
  for (const auto& [id, batch] : st.book->batches()) {
    if (batch.acknowledged_fully())
      continue;
    report.batches.push_back(status_of(st, batch));
    report.live_groups += batch.live_groups;
  }
  report.weights = weights_status_of(self);
  report.uptime_s = static_cast<double>(now_ns(self) - st.started_ns) * 1e-9;
  answer(self, from, std::move(report));
}

void take(self_ptr self, const controller_request& from, const wire::pause&) {
  self->state.paused = true;
  spdlog::info("paused: no chunk is placed until a controller says resume");
  answer(self, from, wire::request_done{});
}

void take(self_ptr self, const controller_request& from, const wire::resume&) {
  self->state.paused = false;
  spdlog::info("resumed");
  answer(self, from, wire::request_done{});
  plan_soon(self);
}

} // namespace

void answer(self_ptr self, const controller_request& to, wire::event body) {
  self->state.parts.link->send(to.peer, {to.envelope->request_id, std::move(body)});
}

void answer(self_ptr self, const controller_request& to, const error& why, const std::string& key) {
  answer(self, to, wire::request_failed{why.code, why.detail, {}, key});
}

result<void> give_to_policy(self_ptr self, batch_record& batch) {
  auto& st = self->state;
  const auto rules = rules_of(st, batch);
  const auto longest = longest_finished(batch);
  for (std::uint64_t i = 0; i < batch.responses.size(); ++i) {
    const auto& r = batch.responses[i];
    if (r.sequence != 0)
      continue;
    const auto prompt = batch.group_of(r).prompt_token_ids.size();
    policy::response_submitted e;
    e.response = {batch.first_response + i};
    e.group = {batch.first_group + r.group};
    e.index = r.index;
    e.prompt_tokens = static_cast<std::uint32_t>(prompt);
    e.tokens_max = tokens_max(batch.sampling_of(r), prompt, st.identity->model.context_max);
    e.tokens_done = static_cast<std::uint32_t>(r.tokens.size());
    e.rules = rules;
    e.tokens_expected = longest[r.group];
    if (st.policy->on(e) == policy::verdict::accepted)
      continue;
    const auto& no = st.policy->last_refusal();
    return fail(no.reason == policy::refusal_reason::responses_full ? errc::queue_full
                                                                    : errc::bad_prompt,
                "group " + std::to_string(r.group) + " of batch '" + batch.spec.batch_key
                  + "' cannot be run: wants " + std::to_string(no.wanted) + ", allowed "
                  + std::to_string(no.allowed));
  }
  return {};
}

void serve(self_ptr self, const controller_request& request) {
  std::visit([&](const auto& body) { take(self, request, body); }, request.envelope->body);
}

void activate(self_ptr self) {
  auto& st = self->state;
  if (st.workers.empty())
    return leave_identity(st);
  std::optional<policy::mode> running;
  std::vector<batch_id> queued;
  for (const auto& [id, batch] : st.book->batches()) {
    if (batch.phase == batch_phase::running)
      running = rules_of(st, batch).how;
    else if (batch.phase == batch_phase::queued)
      queued.push_back(id);
  }
  if (!may_begin(st))
    return;
  for (const auto id : queued) {
    auto& batch = st.book->batches().at(id);
    // A static batch takes KV blocks as it grows, so it cannot share workers with reservations.
    if (running && (st.options.batches_wait || *running != rules_of(st, batch).how))
      return;
    if (waits_for_larger(st, batch))
      continue;
    auto ok = check_batch(batch.spec, st.identity->model);
    if (ok) {
      st.book->start(batch, now_ns(self));
      ok = give_to_policy(self, batch);
    }
    if (!ok) {
      fail_batch(self, batch, ok.error());
      continue;
    }
    for (const auto& [worker, w] : st.workers)
      if (w.routable)
        batch.tally.join(worker, w.hello.name, w.last.stats, now_ns(self));
    running = rules_of(st, batch).how;
    spdlog::info("batch '{}' started: {} groups, {} responses, policy {}", batch.spec.batch_key,
                 batch.spec.groups.size(), batch.responses.size(), policy_of(st, batch));
  }
}

void deliver(self_ptr self, batch_record& batch) {
  auto& st = self->state;
  const auto receiver = batch.receiver;
  for (auto& event : st.book->deliveries(batch))
    st.parts.link->send(receiver, {0, std::move(event)});
}

void finish_response(self_ptr self, batch_book::place at, wire::finish_reason reason) {
  auto& st = self->state;
  auto& batch = *at.batch;
  st.book->finish(at, reason, now_ns(self));
  const auto& m = *st.parts.metrics;
  (reason == wire::finish_reason::stop ? m.responses.stop : m.responses.length).add();
  if (batch.group_unfinished[at.response->group] == 0)
    close_group(self, {batch.first_group + at.response->group});
  const bool over = batch.phase == batch_phase::ended;
  if (over)
    note_end(self, batch);
  deliver(self, batch);
  if (over)
    activate(self);
}

void fail_batch(self_ptr self, batch_record& batch, const error& why) {
  spdlog::info("batch '{}' cannot go on: {}", batch.spec.batch_key, why.detail);
  close_groups(self, batch);
  note_cancelled(self, batch, self->state.book->give_up(batch, why, now_ns(self)));
  deliver(self, batch);
}

} // namespace rollcast::shell
