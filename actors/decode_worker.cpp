#include "actors/bytes.hpp"
#include "actors/decode_worker_shell.hpp"
#include "actors/error_bridge.hpp"
#include "engine/base/memory_guard.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace rollcast {
namespace worker_shell {
namespace {

void note_idle(self_ptr self) {
  self->state.parts.pulse->idle.store(self->state.responses.empty(), std::memory_order_relaxed);
}

void keep_stepping(self_ptr self) {
  auto& st = self->state;
  if (st.stepping || !st.parts.device->has_work())
    return;
  st.stepping = true;
  self->send(self, atom::step_v);
}

} // namespace

// -- chunks -------------------------------------------------------------------

void drop(self_ptr self, response_id response, std::uint32_t attempt) {
  auto& st = self->state;
  const auto it = st.responses.find(response);
  if (it == st.responses.end() || it->second.attempt > attempt)
    return;
  if (it->second.pull != 0)
    st.parts.exchange->cancel(it->second.pull);
  st.parts.device->release(response);
  st.parts.spilled->drop(response);
  if (st.parts.shared)
    st.parts.shared->leave(response);
  st.responses.erase(it);
  note_idle(self);
}

namespace {

result<void> admit(self_ptr self, chunk_assignment a) {
  chunk_request request;
  request.response = a.response;
  request.tokens = from_bytes<token_id>(a.tokens);
  request.prompt_tokens = a.prompt_tokens;
  request.sampling = std::move(a.sampling);
  request.generate_max = a.generate_max;
  request.reserve = a.reserve;
  if (a.wants_experts)
    request.experts_from = a.experts_from;
  if (auto& drafts = self->state.parts.drafts)
    drafts->follow(a.response, a.group, a.probe, request.tokens);
  if (auto& shared = self->state.parts.shared; shared && a.prompt_tokens <= request.tokens.size())
    shared->follow(a.response, a.group, a.prompt_tokens, request.tokens);
  auto admitted = self->state.parts.device->admit(std::move(request));
  if (admitted)
    keep_stepping(self);
  else
    drop(self, a.response, a.attempt); // the scheduler takes it that nothing is left here
  return admitted;
}

/// Hands a chunk to the engine, or says why not.
void begin(self_ptr self, chunk_assignment a) {
  const auto response = a.response;
  const auto attempt = a.attempt;
  if (auto admitted = admit(self, std::move(a)); !admitted)
    self->send(self->state.scheduler, atom::failed_v, self->state.id, response, attempt,
               admitted.error().detail);
}

void start_pull(self_ptr self, decode_worker_state::held& h, const chunk_assignment& a) {
  h.waiting = a;
  h.pull_began = price_meter::clock::now();
  const auto me = caf::actor_cast<decode_worker_actor>(self);
  h.pull = self->state.parts.exchange->pull(
    a.pull_endpoint, {a.pull_from, a.response}, from_bytes<token_id>(a.tokens),
    [me, response = a.response, attempt = a.attempt](result<kv_image> image) {
      auto shared = std::make_shared<result<kv_image>>(std::move(image));
      caf::anon_send(me, pull_outcome{response, attempt, std::move(shared)});
    });
}

/// A copy of parked KV, if there is memory for one.
result<kv_manifest> copy_kv(const engine& device, response_id response, kv_bytes& image) {
  return unless_memory_lacks("a copy of the KV of response " + std::to_string(response.value),
                             [&] { return device.export_kv(response, image); });
}

/// Moves parked KV out of the engine's blocks. What cannot be kept is given up, and said so.
void spill_kv(self_ptr self, response_id response, std::uint32_t attempt) {
  auto& st = self->state;
  const auto it = st.responses.find(response);
  if (it == st.responses.end() || it->second.attempt != attempt
      || !st.parts.device->parked(response))
    return; // the scheduler knows better by now
  const auto began = price_meter::clock::now();
  kv_bytes image;
  auto manifest = copy_kv(*st.parts.device, response, image);
  auto kept = manifest ? st.parts.spilled->put(*manifest, std::move(image)) : fail(manifest);
  st.parts.device->release(response);
  if (kept) {
    const auto now = price_meter::clock::now();
    st.prices.spilled(manifest->bytes, now - began, now);
    return st.parts.metrics->kv_spills.add();
  }
  st.parts.metrics->kv_spill_failures.add();
  spdlog::warn("response {}: KV not spilled, to be computed again: {}", response.value,
               kept.error().detail);
  st.responses.erase(it);
  self->send(st.scheduler, atom::lost_v, st.id, response, attempt);
  note_idle(self);
}

/// Parks spilled KV in the engine's blocks again. Without it the chunk computes what is missing.
void restore_kv(self_ptr self, response_id response) {
  auto& st = self->state;
  const auto began = price_meter::clock::now();
  kv_bytes image;
  const auto manifest = st.parts.spilled->get(response, image);
  auto restored = manifest ? st.parts.device->import_kv(*manifest, image) : fail(manifest);
  if (!restored) {
    st.parts.metrics->kv_spill_failures.add();
    return spdlog::warn("response {}: spilled KV not restored, computing it again: {}",
                        response.value, restored.error().detail);
  }
  const auto now = price_meter::clock::now();
  st.prices.restored(manifest->bytes, now - began, now);
  st.parts.metrics->kv_restores.add();
}

void forget_group(decode_worker_state& st, group_id group) {
  if (st.parts.shared)
    st.parts.shared->forget(group);
  else if (st.parts.drafts)
    st.parts.drafts->forget(group);
}

/// Why a chunk is not for this incarnation as it is now; empty if it is.
std::string foreign(const decode_worker_state& st, const chunk_assignment& a) {
  if (a.worker != st.id)
    return "chunk for worker " + std::to_string(a.worker.value) + ", this is worker "
           + std::to_string(st.id.value);
  if (a.epoch != st.epoch)
    return "chunk for epoch " + std::to_string(a.epoch) + ", epoch " + std::to_string(st.epoch)
           + " is served here";
  return {};
}

void take_chunk(self_ptr self, const chunk_assignment& a) {
  auto& st = self->state;
  if (auto why = foreign(st, a); !why.empty()) {
    if (st.scheduler)
      self->send(st.scheduler, atom::failed_v, a.worker, std::move(why));
    return;
  }
  auto& h = st.responses[a.response];
  if (h.attempt >= a.attempt)
    return; // a doubled dispatch
  h.attempt = a.attempt;
  h.position = static_cast<std::uint32_t>(a.tokens.size() / sizeof(token_id)) - a.prompt_tokens;
  note_idle(self);
  if (!a.pull_endpoint.empty() && !st.parts.device->parked(a.response)) {
    return start_pull(self, h, a);
  }
  if (st.parts.spilled->holds(a.response)) {
    restore_kv(self, a.response);
    st.parts.spilled->drop(a.response);
  }
  begin(self, a);
}

void end_pull(self_ptr self, const pull_outcome& outcome) {
  auto& st = self->state;
  const auto it = st.responses.find(outcome.response);
  if (it == st.responses.end() || it->second.attempt != outcome.attempt || it->second.pull == 0)
    return; // released or lost meanwhile
  it->second.pull = 0;
  auto assignment = std::move(it->second.waiting);
  auto& image = *outcome.image;
  auto imported =
    image ? st.parts.device->import_kv(image->manifest, image->bytes) : result<void>{fail(image)};
  if (imported) {
    const auto now = price_meter::clock::now();
    st.prices.pulled(image->manifest.bytes, now - it->second.pull_began, now);
    self->send(st.scheduler, atom::moved_v, st.id, outcome.response, outcome.attempt,
               image->manifest.bytes, image->carried);
    if (image->fell_back)
      st.parts.metrics->collective_fallbacks.kv.add();
  } else {
    spdlog::warn("response {}: KV not taken over from {}, computing it again: {}",
                 outcome.response.value, assignment.pull_endpoint, imported.error().detail);
  }
  begin(self, std::move(assignment));
}

void report(self_ptr self, const chunk_report& r) {
  auto& st = self->state;
  const auto it = st.responses.find(r.response);
  if (it == st.responses.end())
    return;
  if (st.parts.shared)
    st.parts.shared->leave(r.response);
  chunk_outcome outcome;
  outcome.worker = st.id;
  outcome.response = r.response;
  outcome.attempt = it->second.attempt;
  outcome.epoch = st.epoch;
  outcome.position = it->second.position;
  outcome.tokens = to_bytes(r.tokens);
  outcome.logprobs = to_bytes(r.logprobs);
  const bool kept_all = std::all_of(r.kept_masses.begin(), r.kept_masses.end(),
                                    [](float mass) { return mass == 1.0f; });
  if (!kept_all)
    outcome.kept_masses = to_bytes(r.kept_masses);
  outcome.experts = to_bytes(r.experts);
  outcome.why = static_cast<std::uint8_t>(r.why);
  outcome.kv_parked = r.why == chunk_end::budget && st.parts.device->parked(r.response);
  outcome.stats = st.parts.device->stats();
  if (!outcome.kv_parked)
    st.responses.erase(it);
  self->send(st.scheduler, atom::report_v, std::move(outcome));
}

void step(self_ptr self) {
  auto& st = self->state;
  st.stepping = false;
  if (!st.parts.device->has_work())
    return;
  const auto before = st.parts.device->stats();
  const auto ended = [&st] {
    const herald::busy held{st.voice};
    return st.parts.device->step();
  }();
  const auto& after = st.parts.device->stats();
  st.parts.metrics->step_seconds.observe(static_cast<double>(after.busy_ns - before.busy_ns)
                                         * 1e-9);
  st.prices.stepped(after.rows - before.rows,
                    std::chrono::nanoseconds{after.busy_ns - before.busy_ns},
                    price_meter::clock::now());
  st.parts.metrics->batch_rows.observe(static_cast<double>(after.rows - before.rows));
  if (const auto verified = after.verifications - before.verifications; verified > 0)
    st.parts.metrics->acceptance_length.observe(
      1
      + static_cast<double>(after.accepted_tokens - before.accepted_tokens)
          / static_cast<double>(verified));
  const auto& drafts = st.parts.drafts;
  const auto& model = st.parts.model;
  if ((drafts || model) && after.generated_tokens > before.generated_tokens) {
    const auto looking = drafts ? drafts->figures().draft_seconds : model->figures().seconds;
    st.parts.metrics->draft_seconds.observe(looking - std::exchange(st.drafted_s, looking));
    st.parts.metrics->draft_budget_tokens.observe(
      static_cast<double>(after.draft_tokens - before.draft_tokens));
  }
  for (const auto& r : ended)
    report(self, r);
  note_idle(self);
  keep_stepping(self);
}

/// Ends a pull that has not come. The response goes back as it came.
void give_back(self_ptr self, response_id response) {
  auto& st = self->state;
  st.parts.exchange->cancel(std::exchange(st.responses.at(response).pull, 0));
  report(self, {response, chunk_end::budget, {}, {}, {}});
}

/// Ends what runs where it stands. The node, which knows no incarnation, says 0.
void cut_all(self_ptr self, worker_id meant) {
  auto& st = self->state;
  if (meant != st.id && meant != worker_id{})
    return;
  for (const auto& r : st.parts.device->cut())
    report(self, r);
  std::vector<response_id> pulling;
  for (const auto& [response, h] : st.responses)
    if (h.pull != 0)
      pulling.push_back(response);
  for (const auto response : pulling)
    give_back(self, response);
  note_idle(self);
}

void cut_one(self_ptr self, response_id response, std::uint32_t attempt) {
  auto& st = self->state;
  const auto it = st.responses.find(response);
  if (it == st.responses.end() || it->second.attempt != attempt)
    return; // it has ended meanwhile
  if (it->second.pull != 0)
    give_back(self, response);
  for (const auto& r : st.parts.device->cut(response))
    report(self, r);
  note_idle(self);
}

void offer_kv(self_ptr self, const export_query& query) {
  auto& st = self->state;
  if (query.what.holder != st.id)
    return st.parts.exchange->answer(
      query.ticket,
      fail(errc::peer_lost, "worker " + std::to_string(query.what.holder.value)
                              + " is no more, this is worker " + std::to_string(st.id.value)));
  auto image = std::make_shared<kv_image>();
  const auto response = query.what.response;
  auto manifest = st.parts.spilled->holds(response)
                    ? st.parts.spilled->get(response, image->bytes)
                    : copy_kv(*st.parts.device, response, image->bytes);
  if (!manifest)
    return st.parts.exchange->answer(query.ticket, fail(manifest));
  image->manifest = *manifest;
  st.parts.exchange->answer(query.ticket, std::shared_ptr<const kv_image>{std::move(image)});
}

// -- the link to the scheduler ------------------------------------------------

} // namespace

void lose_scheduler(self_ptr self, error why) {
  auto& st = self->state;
  if (!st.scheduler)
    return;
  self->demonitor(st.scheduler.address());
  st.scheduler = nullptr;
  st.id = {};
  st.voice.leave();
  if (st.parts.collectives)
    st.parts.collectives->serve({}, {});
  st.beat_pending = false;
  while (!st.responses.empty())
    drop(self, st.responses.begin()->first, UINT32_MAX);
  if (st.parts.drafts)
    st.parts.drafts->forget_all();
  forget_preparation(self);
  st.parts.pulse->current = false;
  spdlog::warn("lost the scheduler: {}", why.detail);
  st.parts.pulse->set_link(link_state::down, std::move(why));
}

namespace {

void drain(self_ptr self) {
  auto& st = self->state;
  st.draining = true;
  if (!st.scheduler || st.id == worker_id{})
    return; // told as soon as it is registered, or never
  self->request(st.scheduler, st.options.request_timeout, atom::drain_v, st.id)
    .then([self](caf::ok_atom) { self->state.parts.pulse->drained = true; },
          [self, id = st.id](const caf::error& why) {
            if (self->state.id == id)
              lose_scheduler(self, {errc::peer_lost, detail_of(why), {}});
          });
}

void register_with(self_ptr self, const registry_actor& scheduler) {
  auto& st = self->state;
  lose_scheduler(self, {errc::peer_lost, "a new link takes the old one's place", {}});
  st.scheduler = scheduler;
  st.parts.pulse->set_link(link_state::registering);
  self->monitor(scheduler);
  auto hello = st.options.hello;
  hello.stats = st.parts.device->stats();
  hello.weight_epoch = st.epoch;
  hello.weights_hash = st.parts.device->device().weights_hash();
  hello.as_started = st.base && st.parts.device->device().weights() == st.base;
  self->request(scheduler, st.options.request_timeout, atom::hello_v, std::move(hello))
    .then(
      [self, scheduler](worker_id id) {
        if (self->state.scheduler != scheduler)
          return;
        self->state.id = id;
        if (!self->state.parts.aside)
          self->state.voice.serve(scheduler, id);
        if (self->state.parts.collectives)
          self->state.parts.collectives->serve(
            id, [scheduler](collective::news what) { caf::anon_send(scheduler, std::move(what)); });
        spdlog::info("registered as worker {}", id.value);
        self->state.parts.pulse->set_link(link_state::up);
        if (self->state.draining)
          drain(self);
      },
      [self, scheduler](const caf::error& why) {
        auto& state = self->state;
        if (state.scheduler != scheduler)
          return;
        if (!answered_by_peer(why))
          return lose_scheduler(self, {errc::peer_lost, detail_of(why), {}});
        self->demonitor(state.scheduler.address());
        state.scheduler = nullptr;
        state.parts.pulse->set_link(link_state::refused, error{code_of(why), detail_of(why), {}});
      });
}

void show_figures(self_ptr self, const policy::kv_prices& prices) {
  const auto& device = *self->state.parts.device;
  auto& m = *self->state.parts.metrics;
  const auto kv = device.kv();
  m.requests_running.set(device.running());
  m.requests_waiting.set(device.waiting());
  m.kv_blocks.free.set(kv.free);
  m.kv_blocks.running.set(kv.running);
  m.kv_blocks.parked.set(kv.parked);
  m.kv_spilled_bytes.memory.set(static_cast<double>(self->state.parts.spilled->memory_used()));
  m.kv_spilled_bytes.disk.set(static_cast<double>(self->state.parts.spilled->disk_used()));
  m.recompute_seconds_per_token.set(static_cast<double>(prices.recompute_ns_per_token) * 1e-9);
  m.kv_move_seconds_per_byte.set(static_cast<double>(prices.move_ps_per_byte) * 1e-12);
  m.kv_restore_seconds_per_byte.set(static_cast<double>(prices.restore_ps_per_byte) * 1e-12);
  const auto& stats = device.stats();
  m.prompt_tokens.raise_to(stats.prompt_tokens);
  m.generated_tokens.raise_to(stats.generated_tokens);
  m.recomputed_tokens.raise_to(stats.recomputed_tokens);
  m.preemptions.raise_to(stats.preemptions);
  model_draft_figures by_model;
  if (const auto& model = self->state.parts.model)
    by_model = model->figures();
  m.draft_tokens.suffix.raise_to(stats.draft_tokens - by_model.tokens);
  m.accepted_tokens.suffix.raise_to(stats.accepted_tokens - by_model.accepted);
  m.draft_tokens.model.raise_to(by_model.tokens);
  m.accepted_tokens.model.raise_to(by_model.accepted);
  m.draft_model_passes.raise_to(by_model.passes);
  m.draft_context_restarts.raise_to(by_model.restarts);
  m.draft_contexts_starved.raise_to(by_model.starved);
  if (const auto& drafts = self->state.parts.drafts) {
    m.draft_index_bytes.set(static_cast<double>(drafts->figures().bytes));
  }
  if (const auto& shared = self->state.parts.shared) {
    m.sibling_tokens.raise_to(shared->counts().heard_tokens);
    m.draft_gaps_repaired.raise_to(shared->counts().gaps_repaired);
    m.draft_link_dropped.raise_to(shared->counts().dropped);
    m.draft_link_rejected.raise_to(shared->counts().rejected);
  }
}

void beat(self_ptr self) {
  auto& st = self->state;
  self->delayed_send(self, st.options.beat_interval, caf::tick_atom_v);
  st.parts.pulse->beat_ns.store(steady_ns(), std::memory_order_relaxed);
  const auto prices = st.prices.prices(price_meter::clock::now());
  show_figures(self, prices);
  if (!st.scheduler || st.id == worker_id{} || st.beat_pending)
    return;
  st.beat_pending = true;
  tell_progress(self);
  const auto& device = *st.parts.device;
  self
    ->request(
      st.scheduler, st.options.request_timeout, atom::beat_v,
      worker_beat{st.id, device.stats(), device.running(), device.waiting(), device.kv(), prices})
    .then([self](caf::ok_atom) { self->state.beat_pending = false; },
          [self, id = st.id](const caf::error& why) {
            if (self->state.id == id)
              lose_scheduler(self, {errc::peer_lost, detail_of(why), {}});
          });
}

} // namespace
} // namespace worker_shell

decode_worker_actor::behavior_type
decode_worker(decode_worker_actor::stateful_pointer<decode_worker_state> self,
              decode_worker_parts parts, decode_worker_options options) {
  using namespace worker_shell;
  self->state.epoch = options.hello.weight_epoch;
  self->state.base = parts.device->device().weights();
  self->state.weight_memory = tensor_memory{options.weight_memory_kept};
  self->state.parts = std::move(parts);
  self->state.options = std::move(options);
  self->set_exception_handler(end_process);
  self->set_down_handler([self](const caf::down_msg& down) {
    if (self->state.scheduler && self->state.scheduler.address() == down.source)
      lose_scheduler(self,
                     {errc::peer_lost, "connection lost: " + caf::to_string(down.reason), {}});
  });
  self->send(self, caf::tick_atom_v);
  return {
    [self](atom::decode, const chunk_assignment& a) { take_chunk(self, a); },
    [self](atom::release, worker_id worker, response_id response, std::uint32_t attempt) {
      if (worker == self->state.id)
        drop(self, response, attempt);
    },
    [self](atom::spill, worker_id worker, response_id response, std::uint32_t attempt) {
      if (worker == self->state.id)
        spill_kv(self, response, attempt);
    },
    [self](atom::gone, worker_id holder) {
      for (const auto& [response, h] : self->state.responses)
        if (h.pull != 0 && h.waiting.pull_from == holder)
          self->state.parts.exchange->cancel(h.pull);
    },
    [self](atom::gone, group_id group) { forget_group(self->state, group); },
    [self](atom::join, const registry_actor& scheduler) { register_with(self, scheduler); },
    [self](atom::drain) { drain(self); },
    [self](atom::cut, worker_id worker) { cut_all(self, worker); },
    [self](atom::cut, worker_id worker, response_id response, std::uint32_t attempt) {
      if (worker == self->state.id)
        cut_one(self, response, attempt);
    },
    [self](atom::admit, worker_id worker) {
      if (worker == self->state.id)
        self->state.parts.pulse->current = true;
    },
    [self](atom::prepare, const weight_order& order) {
      if (order.worker == self->state.id)
        prepare(self, order);
    },
    [self](atom::redirect, worker_id worker, std::uint64_t update, const std::string& upstream) {
      if (worker == self->state.id)
        redirect(self, update, upstream);
    },
    [self](atom::cancel, worker_id worker, std::uint64_t update) {
      const auto& p = self->state.preparing;
      if (worker == self->state.id && p && p->order.update == update)
        forget_preparation(self);
    },
    [self](atom::flip, worker_id worker, std::uint64_t update, std::uint64_t epoch, bool back) {
      if (worker == self->state.id)
        flip(self, update, epoch, back);
    },
    [self](atom::score, const score_order& order) { return score(self, order); },
    [self](const weights_pulled& outcome) { end_weight_pull(self, outcome); },
    [self](const weights_packed& outcome) { end_packing(self, outcome); },
    [self](atom::step) { step(self); },
    [self](caf::tick_atom) { beat(self); },
    [self](const export_query& query) { offer_kv(self, query); },
    [self](const pull_outcome& outcome) { end_pull(self, outcome); },
  };
}

} // namespace rollcast
