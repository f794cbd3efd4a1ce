#include "actors/scheduler.hpp"

#include "actors/error_bridge.hpp"
#include "actors/scheduler_shell.hpp"
#include "actors/status_board.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>

namespace rollcast {
namespace shell {

std::uint64_t now_ns(self_ptr self) {
  return static_cast<std::uint64_t>(
    std::chrono::duration_cast<std::chrono::nanoseconds>(self->clock().now().time_since_epoch())
      .count());
}

void plan_soon(self_ptr self) {
  if (self->state.plan_pending)
    return;
  self->state.plan_pending = true;
  self->send(self, atom::plan_v);
}

// -- workers ------------------------------------------------------------------

namespace {

void count_workers(self_ptr self) {
  const auto& st = self->state;
  const auto draining = std::count_if(st.workers.begin(), st.workers.end(),
                                      [](const auto& entry) { return entry.second.draining; });
  const auto stale = std::count_if(st.workers.begin(), st.workers.end(), [](const auto& entry) {
    return !entry.second.routable && !entry.second.draining;
  });
  const auto ready = st.workers.size() - static_cast<std::size_t>(draining + stale);
  st.parts.metrics->workers.ready.set(static_cast<double>(ready));
  st.parts.metrics->workers.draining.set(static_cast<double>(draining));
  st.parts.metrics->workers.stale.set(static_cast<double>(stale));
  st.parts.pulse->ready_workers.store(static_cast<std::uint32_t>(ready));
}

/// Checks a worker against what the cluster is. The first worker decides what that is.
result<void> check_member(const scheduler_state& st, const worker_hello& hello) {
  if (hello.kv_blocks == 0 || hello.block_tokens == 0 || hello.slots == 0 || hello.context_max == 0
      || hello.vocabulary == 0)
    return fail(errc::bad_config, "worker '" + hello.name + "' offers "
                                    + std::to_string(hello.kv_blocks) + " KV blocks of "
                                    + std::to_string(hello.block_tokens) + " tokens, "
                                    + std::to_string(hello.slots) + " slots, context "
                                    + std::to_string(hello.context_max) + ", vocabulary "
                                    + std::to_string(hello.vocabulary) + "; none may be 0");
  if (!st.identity)
    return {};
  const auto& ours = *st.identity;
  const auto differs = [&](const std::string& what, const std::string& theirs,
                           const std::string& cluster) {
    return fail(errc::numerics_mismatch, "worker '" + hello.name + "' has " + what + " " + theirs
                                           + ", the cluster has " + cluster
                                           + "; start it with the cluster's model and profile");
  };
  if (hello.numerics_hash != ours.numerics_hash)
    return differs("numerics profile", hello.numerics + " " + to_string(hello.numerics_hash),
                   ours.model.numerics_profile + " " + to_string(ours.numerics_hash));
  // Another epoch can be helped: it is fed. Another content of the same one is another checkpoint.
  if (hello.weights_hash != ours.weights_hash && hello.weight_epoch == ours.model.weight_version)
    return differs(
      "weights", to_string(hello.weights_hash) + " at epoch " + std::to_string(hello.weight_epoch),
      to_string(ours.weights_hash) + " at epoch " + std::to_string(ours.model.weight_version));
  if (hello.context_max != ours.model.context_max || hello.vocabulary != ours.model.vocabulary)
    return differs("context and vocabulary",
                   std::to_string(hello.context_max) + " and " + std::to_string(hello.vocabulary),
                   std::to_string(ours.model.context_max) + " and "
                     + std::to_string(ours.model.vocabulary));
  const auto text = [](const expert_layout& x) {
    return std::to_string(x.layers) + " layers of " + std::to_string(x.per_token) + " in "
           + std::to_string(x.id_bytes) + " bytes";
  };
  if (ours.model.experts && hello.experts != *ours.model.experts)
    return differs("experts,", text(hello.experts), text(*ours.model.experts));
  if (hello.eos_token_ids != ours.eos_token_ids)
    return differs("end-of-sequence ids", "of its own", "others");
  return {};
}

void adopt_identity(scheduler_state& st, const worker_hello& hello) {
  if (!st.identity) {
    cluster_model model{hello.numerics, hello.weight_epoch, hello.vocabulary, hello.context_max, 0,
                        hello.experts};
    st.identity = {model, hello.model, hello.numerics_hash, hello.weights_hash,
                   hello.eos_token_ids};
    st.book->numerics_profile = hello.numerics;
    st.book->speculate = hello.speculate;
    st.book->weight_version = hello.weight_epoch;
    st.parts.metrics->registry.describe(ROLLCAST_VERSION, hello.numerics);
    st.parts.metrics->weight_epoch.set(static_cast<double>(hello.weight_epoch));
    // In this order: cut between the two there is no identity, so nothing is held against anybody.
    note(st, journal::epoch_decided{hello.weight_epoch, hello.weights_hash});
    note(st, journal::cluster_identity{hello.model.empty() ? "unnamed" : hello.model,
                                       hello.numerics, hello.numerics_hash, hello.vocabulary,
                                       hello.context_max, hello.eos_token_ids});
  }
  st.identity->model.experts = st.book->experts = hello.experts;
  const auto holds = std::uint64_t{hello.kv_blocks} * hello.block_tokens;
  auto& most = st.identity->model.kv_tokens_max;
  if (most == std::numeric_limits<std::uint64_t>::max()) { // the first one after a restart
    most = holds;
    st.book->speculate = hello.speculate;
  }
  most = std::max(most, holds);
}

caf::result<worker_id> take_hello(self_ptr self, const worker_hello& hello) {
  auto& st = self->state;
  const auto sender = self->current_sender();
  if (!sender)
    return to_caf(errc::bad_config, "a worker must register by a request");
  for (const auto& [id, w] : st.workers)
    if (w.handle.address() == sender->address()) {
      lose_worker(self, id, "it registers anew");
      break;
    }
  if (const auto it = st.banned.find(process_of(hello)); it != st.banned.end())
    return to_caf(it->second);
  if (auto ok = check_member(st, hello); !ok) {
    spdlog::warn("refused a worker: {}", ok.error().detail);
    return to_caf(ok.error());
  }
  const worker_id id{st.next_worker++};
  adopt_identity(st, hello);
  auto& w = st.workers[id];
  w.handle = caf::actor_cast<decode_worker_actor>(sender);
  w.hello = hello;
  w.last.stats = hello.stats;
  w.paced = hello.stats;
  w.heard_ns = now_ns(self);
  w.last.kv.total = hello.kv_blocks;
  self->monitor(w.handle);
  spdlog::info("worker {} '{}' joined: pid {} on {}, {} KV blocks of {} tokens, {} slots, epoch {}",
               id.value, hello.name, hello.pid, hello.host, hello.kv_blocks, hello.block_tokens,
               hello.slots, hello.weight_epoch);
  // Its number must be there before any order to it.
  auto promise = self->make_response_promise<worker_id>();
  promise.deliver(id);
  count_workers(self);
  tell_machine(self, weights::worker_joined{
                       id, hello.host, {hello.weight_epoch, hello.weights_hash}, hello.as_started});
  activate(self);
  return promise;
}

/// Tells the policy how long a response waits there for a token. Over some steps, so that a long
/// one (a prompt) does not make a worker look slow.
void take_pace(self_ptr self, scheduler_state::worker& w, const worker_beat& beat) {
  constexpr std::uint64_t steps_min = 16;
  constexpr std::uint64_t busy_ns_max = 1'000'000'000; // then two of a slow one must do
  auto& st = self->state;
  const auto steps = beat.stats.steps - w.paced.steps;
  const auto busy_ns = beat.stats.busy_ns - w.paced.busy_ns;
  if (steps < steps_min && (steps < 2 || busy_ns < busy_ns_max))
    return;
  w.paced = beat.stats;
  if (!w.routable || !st.options.measured_prices)
    return;
  const auto token_ns = std::max<std::uint64_t>(1, busy_ns / steps);
  (void)st.policy->on(policy::worker_paced{beat.worker, token_ns});
  if (st.policy->waiting() == 0 && st.policy->running() > 0)
    plan_soon(self); // perhaps a chunk should leave a slow worker
}

caf::result<caf::ok_atom> take_beat(self_ptr self, const worker_beat& beat) {
  auto& st = self->state;
  const auto it = st.workers.find(beat.worker);
  if (it == st.workers.end())
    return to_caf(errc::peer_lost,
                  "worker " + std::to_string(beat.worker.value) + " is not registered");
  take_stats(self, beat.worker, beat.stats);
  if (st.options.measured_prices && it->second.routable && beat.prices != it->second.last.prices)
    (void)st.policy->on(policy::worker_priced{beat.worker, beat.prices});
  take_pace(self, it->second, beat);
  it->second.last = beat;
  it->second.heard_ns = now_ns(self);
  return caf::ok_atom_v;
}

caf::result<caf::ok_atom> drain_worker(self_ptr self, worker_id id) {
  auto& st = self->state;
  const auto it = st.workers.find(id);
  if (it == st.workers.end())
    return to_caf(errc::peer_lost, "worker " + std::to_string(id.value) + " is not registered");
  if (it->second.draining)
    return caf::ok_atom_v;
  it->second.draining = true;
  (void)st.policy->on(policy::worker_draining{id});
  spdlog::info("worker {} '{}' is draining", id.value, it->second.hello.name);
  count_workers(self);
  cut_if_all_leave(self);
  plan_soon(self);
  return caf::ok_atom_v;
}

/// Loses workers whose process lives and whose engine does not return.
void lose_stuck(self_ptr self) {
  const auto& st = self->state;
  const auto patience = static_cast<std::uint64_t>(st.options.request_timeout.count());
  std::vector<worker_id> stuck;
  for (const auto& [id, w] : st.workers)
    if (now_ns(self) > w.heard_ns + patience)
      stuck.push_back(id);
  for (const auto id : stuck)
    lose_worker(self, id,
                "its engine has not returned for " + std::to_string(patience / 1'000'000'000)
                  + " s");
}

/// A controller's connection has gone: nothing is pushed to it, and what it asked for ends.
void forget_peer(self_ptr self, const std::string& peer) {
  for (auto& [id, batch] : self->state.book->batches())
    if (batch.receiver == peer)
      batch.receiver.clear();
  std::erase_if(self->state.scores, [&](const auto& job) {
    if (job.second.from.peer != peer)
      return false;
    // Whether anybody hears it or not, an answer counts the request off.
    answer(self, job.second.from,
           error{errc::cancelled, "the controller has gone or does not read", {}});
    return true;
  });
}

void tick(self_ptr self) {
  auto& st = self->state;
  self->delayed_send(self, st.options.tick_interval, caf::tick_atom_v);
  st.parts.pulse->beat_ns.store(steady_ns(), std::memory_order_relaxed);
  st.parts.metrics->requests_running.set(static_cast<double>(st.policy->running()));
  st.parts.metrics->requests_waiting.set(static_cast<double>(st.policy->waiting()));
  const auto stranded = st.policy->stranded();
  if (stranded > st.stranded)
    spdlog::warn("{} responses need more KV blocks than any worker that is left has; they wait for "
                 "a worker as large as the one that has gone",
                 stranded);
  st.stranded = stranded;
  keep_staging(self);
  watch_pause(self);
  watch_unserved(self);
  expire_scores(self);
  lose_stuck(self);
  note_durable(self);
  turn_collectives(self);
  show_journal(st);
  show_board(self);
}

} // namespace

std::string process_of(const worker_hello& hello) {
  return hello.host + ":" + std::to_string(hello.pid) + " '" + hello.name + "' "
         + to_string(hello.weights_hash);
}

void admit_worker(self_ptr self, worker_id id) {
  auto& st = self->state;
  const auto it = st.workers.find(id);
  if (it == st.workers.end())
    return;
  auto& w = it->second;
  const auto& hello = w.hello;
  const policy::worker_joined joined{id,
                                     hello.kv_blocks,
                                     hello.block_tokens,
                                     hello.slots,
                                     hello.kv_bytes_per_token,
                                     hello.spill_tokens,
                                     hello.spill_page_tokens};
  if (st.policy->on(joined) != policy::verdict::accepted) {
    st.banned[process_of(hello)] = {errc::queue_full,
                                    "the scheduler takes no more than "
                                      + std::to_string(st.workers.size() - 1) + " workers",
                                    {}};
    return lose_worker(self, id, st.banned[process_of(hello)].detail);
  }
  w.routable = true;
  if (w.draining)
    (void)st.policy->on(policy::worker_draining{id});
  self->send(w.handle, atom::admit_v, id);
  join_collective(self, id);
  for (auto& [key, batch] : st.book->batches())
    if (batch.phase == batch_phase::running)
      batch.tally.join(id, hello.name, w.last.stats, now_ns(self));
  count_workers(self);
  plan_soon(self);
}

void lose_worker(self_ptr self, worker_id id, const std::string& why) {
  auto& st = self->state;
  const auto it = st.workers.find(id);
  if (it == st.workers.end())
    return;
  self->demonitor(it->second.handle.address());
  const auto dropped = st.policy->running_on(id);
  if (it->second.draining && dropped.empty()) {
    spdlog::info("worker {} '{}' has left", id.value, it->second.hello.name);
  } else {
    spdlog::warn("lost worker {} '{}' with {} chunks: {}", id.value, it->second.hello.name,
                 dropped.size(), why);
    st.parts.metrics->worker_lost.add();
    if (st.parts.board)
      st.parts.board->lost(it->second.hello.name);
  }
  end_feeding(st, it->second);
  const auto lost = std::move(it->second);
  st.workers.erase(it);
  leave_collective(self, id);
  lose_scores(self, lost);
  for (const auto& [other, w] : st.workers)
    self->send(w.handle, atom::gone_v, id);
  (void)st.policy->on(policy::worker_lost{id});
  for (auto& [key, batch] : st.book->batches())
    if (batch.phase == batch_phase::running)
      batch.tally.leave(id, now_ns(self));
  for (const auto response : dropped)
    note_loss(self, response, why);
  count_workers(self);
  tell_machine(self, weights::worker_lost{id});
  activate(self);
  plan_soon(self);
}

void take_stats(self_ptr self, worker_id id, const engine_stats& stats) {
  auto& st = self->state;
  const auto it = st.workers.find(id);
  if (it == st.workers.end() || stats.steps < it->second.last.stats.steps)
    return; // a late copy
  const auto& m = *st.parts.metrics;
  const auto& old = it->second.last.stats;
  m.prompt_tokens.add(stats.prompt_tokens - old.prompt_tokens);
  m.recomputed_tokens.add(stats.recomputed_tokens - old.recomputed_tokens);
  m.preemptions.add(stats.preemptions - old.preemptions);
  it->second.last.stats = stats;
  for (auto& [key, batch] : st.book->batches())
    if (batch.phase == batch_phase::running)
      batch.tally.update(id, stats);
}

} // namespace shell

// -- the table of messages ----------------------------------------------------

scheduler_actor::behavior_type scheduler(shell::self_ptr self, scheduler_parts parts,
                                         scheduler_options options) {
  auto& st = self->state;
  st.parts = std::move(parts);
  st.options = std::move(options);
  st.policy.emplace(st.options.policy);
  st.machine.emplace();
  st.collectives = collective::coordinator{st.options.collectives};
  st.book.emplace(st.options.batches, st.parts.journal ? st.parts.journal->sink.get() : nullptr);
  st.book->default_policy = st.options.default_policy;
  st.started_ns = shell::now_ns(self);
  self->set_exception_handler(end_process);
  if (st.parts.journal)
    shell::restore(self);
  self->set_down_handler([self](const caf::down_msg& down) {
    for (const auto& [id, w] : self->state.workers)
      if (w.handle.address() == down.source)
        return shell::lose_worker(self, id, "connection lost: " + caf::to_string(down.reason));
  });
  self->send(self, caf::tick_atom_v);
  return {
    [self](atom::hello, const worker_hello& hello) { return shell::take_hello(self, hello); },
    [self](atom::report, const chunk_outcome& outcome) { shell::take_outcome(self, outcome); },
    [self](atom::moved, worker_id target, response_id response, std::uint32_t attempt,
           std::uint64_t bytes, bool carried) {
      shell::take_moved(self, target, response, attempt, {bytes, carried});
    },
    [self](atom::failed, worker_id worker, response_id response, std::uint32_t attempt,
           const std::string& why) { shell::take_failed(self, worker, response, attempt, why); },
    [self](atom::failed, worker_id worker, const std::string& why) {
      shell::lose_worker(self, worker, "a chunk was not taken on: " + why);
    },
    [self](atom::lost, worker_id worker, response_id response, std::uint32_t attempt) {
      if (self->state.policy->on(policy::kv_lost{response, worker, attempt})
          == policy::verdict::accepted)
        shell::plan_soon(self);
    },
    [self](atom::beat, const worker_beat& beat) { return shell::take_beat(self, beat); },
    [self](atom::drain, worker_id id) { return shell::drain_worker(self, id); },
    [self](const controller_request& request) {
      if (!shell::refuse_while_stopping(self, request))
        shell::serve(self, request);
    },
    [self](atom::gone, const std::string& peer) { shell::forget_peer(self, peer); },
    [self](atom::drain) { shell::begin_stop(self); },
    [self](atom::plan) { shell::place(self); },
    [self](atom::again, worker_id worker, response_id response, std::uint32_t attempt) {
      shell::place_again(self, worker, response, attempt);
    },
    [self](atom::weights, const weight_news& news) { shell::take_weight_news(self, news); },
    [self](const collective::news& what) { shell::take_collective_news(self, what); },
    [self](atom::due, std::uint64_t timer) {
      shell::tell_machine(self, weights::expired{{timer}});
    },
    [self](atom::score, std::uint64_t job) { shell::score_on(self, job); },
    [self](atom::durable) { shell::note_durable(self); },
    [self](const weights_staged& outcome) { shell::take_weights_staged(self, outcome); },
    [self](caf::tick_atom) { shell::tick(self); },
  };
}

} // namespace rollcast
