#include "actors/scheduler_shell.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <utility>

namespace rollcast::shell {
namespace {

double seconds(std::uint64_t from_ns, std::uint64_t to_ns) {
  return to_ns > from_ns ? static_cast<double>(to_ns - from_ns) * 1e-9 : 0.0;
}

const metric_histogram& histogram_of(const scheduler_metrics& m, weights::phase at) {
  const auto& by_phase = m.weight_update_seconds;
  switch (at) {
    case weights::phase::distributing: return by_phase.distributing;
    case weights::phase::waiting: return by_phase.waiting;
    case weights::phase::flipping: return by_phase.flipping;
    default: return by_phase.receiving;
  }
}

/// Notes that a phase of the update has ended.
void note_phase(self_ptr self) {
  auto& st = self->state;
  if (!st.update || st.machine->at() == st.update->at)
    return;
  auto& u = *st.update;
  const auto now = now_ns(self);
  u.phases.push_back({std::string{to_string(u.at)}, seconds(u.phase_ns, now)});
  histogram_of(*st.parts.metrics, u.at).observe(u.phases.back().seconds);
  u.at = st.machine->at();
  u.phase_ns = now;
}

scheduler_state::weight_update& note_begin(self_ptr self, const controller_request& from,
                                           weights::update_id number) {
  auto& st = self->state;
  auto& u = st.update.emplace();
  u.number = number;
  u.peer = from.peer;
  u.epoch = st.machine->update()->epoch;
  u.began_ns = u.phase_ns = now_ns(self);
  u.at = st.machine->at();
  note(st, journal::epoch_promised{u.epoch}); // before anybody hears the number
  return u;
}

std::string endpoint_of(const scheduler_state& st, std::optional<worker_id> upstream) {
  if (upstream)
    if (const auto it = st.workers.find(*upstream); it != st.workers.end())
      return it->second.hello.weights_endpoint;
  return st.parts.weights ? st.parts.weights->endpoint() : "";
}

/// Who sends an update to the group is the first of the chain. What does not come that way is
/// pulled along the chain, as if there were no group.
weight_way way_of(self_ptr self, const weights::prepare& d) {
  auto& st = self->state;
  const auto members = st.collectives.members();
  const auto in = [&](worker_id w) {
    return std::find(members.begin(), members.end(), w) != members.end();
  };
  if (d.what != weights::cargo::sent || !in(d.worker))
    return weight_way::chain;
  if (!d.upstream) {
    st.caster = {d.update, d.worker};
    return weight_way::casts;
  }
  const bool cast = st.caster.update == d.update && in(st.caster.worker);
  return cast ? weight_way::waits : weight_way::chain;
}

template <class... Args>
void order(self_ptr self, worker_id worker, Args&&... args) {
  const auto it = self->state.workers.find(worker);
  if (it != self->state.workers.end())
    self->send(it->second.handle, std::forward<Args>(args)...);
}

// -- decisions ----------------------------------------------------------------

void carry_out(self_ptr self, const weights::prepare& d) {
  auto& st = self->state;
  const weight_parcel* parcel = nullptr;
  std::shared_ptr<const weight_parcel> whole;
  if (st.parts.weights && d.what == weights::cargo::sent)
    parcel = st.parts.weights->staged(d.update.value);
  else if (st.parts.weights)
    parcel = (whole = st.parts.weights->whole(d.update.value, d.epoch)).get();
  // Of the checkpoint itself there is nothing to send: whoever has it proves that by the hash.
  if (parcel == nullptr && d.what == weights::cargo::sent) {
    error why{errc::stale_epoch,
              "the tensors of epoch " + std::to_string(d.epoch) + " are not held any more",
              {}};
    (void)st.machine->on(weights::refused{d.worker, d.update, std::move(why)});
    return;
  }
  weight_order o;
  o.worker = d.worker;
  o.update = d.update.value;
  o.epoch = d.epoch;
  o.whole = d.what == weights::cargo::whole;
  o.allow_non_finite = d.allow_non_finite;
  o.upstream = endpoint_of(st, d.upstream);
  o.way = way_of(self, d);
  o.group_epoch = st.collectives.epoch();
  if (parcel != nullptr) {
    o.complete = parcel->complete;
    o.slice_bytes = parcel->cargo->slice_bytes();
    o.tensors = parcel->cargo->tensors();
  }
  const auto w = st.workers.find(d.worker);
  if (w != st.workers.end() && whole && !(st.update && st.update->number == d.update))
    w->second.feeding = d.update.value;
  order(self, d.worker, atom::prepare_v, std::move(o));
}

void carry_out(self_ptr self, const weights::redirect& d) {
  order(self, d.worker, atom::redirect_v, d.worker, d.update.value,
        endpoint_of(self->state, d.upstream));
}

void carry_out(self_ptr self, const weights::cancel& d) {
  if (const auto it = self->state.workers.find(d.worker); it != self->state.workers.end())
    end_feeding(self->state, it->second);
  order(self, d.worker, atom::cancel_v, d.worker, d.update.value);
}

void carry_out(self_ptr self, const weights::hold& d) {
  self->state.held = d;
  self->state.quiet = self->state.scores_wait = false;
  plan_soon(self); // it looks whether anything runs
}

void carry_out(self_ptr self, const weights::release&) {
  auto& st = self->state;
  if (st.quiet)
    st.parts.metrics->weight_pause_seconds.observe(seconds(st.quiet_ns, now_ns(self)));
  st.held.reset();
  st.quiet = st.scores_wait = false;
  undecide_flip(self);
  for (const auto& [number, job] : st.scores)
    self->send(self, atom::score_v, number);
  activate(self);
  plan_soon(self);
}

void carry_out(self_ptr self, const weights::flip& d) {
  order(self, d.worker, atom::flip_v, d.worker, d.update.value, d.epoch, d.back);
}

void carry_out(self_ptr self, const weights::expel& d) {
  auto& st = self->state;
  const auto it = st.workers.find(d.worker);
  if (it == st.workers.end())
    return;
  if (d.for_good)
    st.banned[process_of(it->second.hello)] = {errc::numerics_mismatch, d.why.detail, {}};
  lose_worker(self, d.worker, d.why.detail);
}

void carry_out(self_ptr self, const weights::admit& d) {
  admit_worker(self, d.worker);
}

/// The fleet serves another epoch from now on.
void adopt(self_ptr self, const weights::served_weights& serves) {
  auto& st = self->state;
  st.identity->model.weight_version = serves.epoch;
  st.identity->weights_hash = serves.hash;
  st.book->weight_version = serves.epoch;
  st.parts.metrics->weight_epoch.set(static_cast<double>(serves.epoch));
  for (auto& [id, batch] : st.book->batches()) {
    const auto required = batch.spec.required_weight_version;
    if (batch.phase == batch_phase::running && required && *required != serves.epoch)
      fail_batch(self, batch,
                 {errc::stale_epoch,
                  "batch '" + batch.spec.batch_key + "' requires weight version "
                    + std::to_string(*required) + ", the cluster went on to "
                    + std::to_string(serves.epoch) + " at a chunk's edge",
                  {}});
  }
}

wire::weights_served served(self_ptr self, const weights::ended& d) {
  const auto& st = self->state;
  wire::weights_served out;
  out.epoch = d.serves.epoch;
  out.hash = d.serves.hash;
  out.tensors = st.update->tensors;
  out.bytes = st.update->bytes;
  out.phases = st.update->phases;
  out.pause_s = st.quiet ? seconds(st.quiet_ns, now_ns(self)) : 0.0;
  out.workers = static_cast<std::uint64_t>(std::count_if(
    st.workers.begin(), st.workers.end(), [](const auto& w) { return w.second.routable; }));
  return out;
}

void carry_out(self_ptr self, const weights::ended& d) {
  auto& st = self->state;
  note_phase(self);
  const auto& m = *st.parts.metrics;
  switch (d.how) {
    case weights::outcome::committed:
      st.parts.weights->commit(d.update.value, d.epoch);
      m.weight_updates.committed.add();
      break;
    case weights::outcome::rolled_back:
      st.parts.weights->go_back(d.serves.epoch);
      m.weight_updates.rolled_back.add();
      break;
    case weights::outcome::aborted: m.weight_updates.aborted.add(); break;
  }
  st.parts.weights->drop(d.update.value);
  st.parts.weights->withdraw(d.update.value);
  if (d.how != weights::outcome::aborted)
    adopt(self, d.serves);
  if (st.update && st.update->from && d.how != weights::outcome::aborted)
    answer(self, *st.update->from, served(self, d));
  else if (st.update && st.update->from)
    answer(self, *st.update->from, d.why);
  if (d.how == weights::outcome::aborted)
    spdlog::warn("the update to epoch {} is over, epoch {} goes on: {}", d.epoch, d.serves.epoch,
                 d.why.detail);
  else
    spdlog::info("epoch {} is served, hash {}", d.serves.epoch, to_string(d.serves.hash));
  st.update.reset();
}

void carry_out(self_ptr self, const weights::arm& d) {
  const auto& times = self->state.options.weight_deadlines;
  const auto span = [&] {
    switch (d.kind) {
      case weights::deadline::receiving: return times.receiving;
      case weights::deadline::preparing: return times.preparing;
      case weights::deadline::silence: return times.silence;
      case weights::deadline::waiting: return times.waiting;
      case weights::deadline::flipping: return times.flipping;
    }
    return times.preparing;
  }();
  self->delayed_send(self, span, atom::due_v, d.timer.value);
}

/// Does what the machine has decided, and what it decides on hearing what came of that.
void settle(self_ptr self) {
  auto& st = self->state;
  note_phase(self);
  if (st.settling)
    return;
  st.settling = true;
  for (auto decisions = st.machine->drain(); !decisions.empty(); decisions = st.machine->drain())
    for (const auto& d : decisions)
      std::visit([&](const auto& what) { carry_out(self, what); }, d);
  st.settling = false;
}

// -- requests -----------------------------------------------------------------

weights::update_spec spec_of(std::uint64_t epoch, bool changed_only, wire::weight_flip flip,
                             bool allow_non_finite) {
  weights::update_spec spec;
  spec.epoch = epoch;
  spec.covers = changed_only ? weights::coverage::changed_only : weights::coverage::complete;
  spec.flip = flip == wire::weight_flip::chunk_edge ? weights::flip_at::chunk_edge
                                                    : weights::flip_at::between_batches;
  spec.allow_non_finite = allow_non_finite;
  return spec;
}

/// Whether updates can be served here at all; answers if not.
bool serves_weights(self_ptr self, const controller_request& from) {
  if (self->state.parts.weights)
    return true;
  self->state.parts.metrics->frames_rejected.unimplemented.add();
  answer(self, from, error{errc::unimplemented, "this scheduler has no weight exchange", {}});
  return false;
}

/// Whether the update to `epoch` is being received from its controller; answers if not.
bool receives(self_ptr self, const controller_request& from, std::uint64_t epoch,
              std::string_view what) {
  const auto& st = self->state;
  if (st.update && st.machine->at() == weights::phase::receiving && !st.update->staging
      && st.update->epoch == epoch && st.update->peer == from.peer)
    return true;
  std::string now = "no update is in work";
  if (st.update)
    now = "the update to epoch " + std::to_string(st.update->epoch) + " is "
          + (!st.update->staging    ? std::string{to_string(st.update->at)}
             : st.update->directory ? "read from a directory"
                                    : "being hashed after its commit")
          + (st.update->peer == from.peer ? "" : ", begun by another connection");
  answer(self, from,
         error{errc::update_conflict,
               std::string{what} + " for epoch " + std::to_string(epoch) + ": " + now
                 + "; begin an update to it first",
               {}});
  return false;
}

std::string directory_problem(const std::string& directory) {
  std::error_code why;
  if (!std::filesystem::is_directory(directory, why))
    return "cannot load weights from '" + directory
           + "': no such directory on the scheduler's machine";
  return {};
}

/// Has a thread tell the scheduler how the staging went.
weight_store::staged_callback tell_staged(self_ptr self) {
  const auto me = caf::actor_cast<scheduler_actor>(self);
  using staged = result<std::shared_ptr<weight_cargo>>;
  return [me, update = self->state.update->number.value](staged cargo) {
    caf::anon_send(me, weights_staged{update, std::make_shared<staged>(std::move(cargo))});
  };
}

/// All tensors are here: workers are told.
result<void> commit(self_ptr self, std::shared_ptr<const weight_cargo> from) {
  auto& st = self->state;
  auto& u = *st.update;
  const auto& cargo = *st.parts.weights->hand_out(u.number.value, std::move(from)).cargo;
  if (u.count && *u.count != cargo.tensors().size())
    return fail(errc::bad_checkpoint, "commit of epoch " + std::to_string(u.epoch) + " speaks of "
                                        + std::to_string(*u.count) + " tensors, "
                                        + std::to_string(cargo.tensors().size())
                                        + " came; the update is aborted, send it again");
  u.tensors = cargo.tensors().size();
  u.bytes = cargo.bytes_here();
  if (auto ok = st.machine->commit(u.epoch, u.hash, u.bytes); !ok)
    return fail(ok);
  return {};
}

} // namespace

void tell_machine(self_ptr self, const weights::news& what) {
  (void)self->state.machine->on(what);
  settle(self);
}

void settle_machine(self_ptr self) {
  settle(self);
}

void take_weight_news(self_ptr self, const weight_news& news) {
  auto& st = self->state;
  const auto it = st.workers.find(news.worker);
  if (it == st.workers.end())
    return; // of an incarnation that is gone
  const weights::update_id update{news.update};
  // A worker that a step holds has not heard of its order yet, and says only that it lives.
  const auto known = [&] {
    for (const auto& w : st.machine->workers())
      if (w.worker == news.worker)
        return w.update;
    return weights::update_id{};
  };
  switch (static_cast<weight_news_kind>(news.kind)) {
    case weight_news_kind::progressed:
      return tell_machine(
        self, weights::progressed{news.worker, update == weights::update_id{} ? known() : update,
                                  news.bytes});
    case weight_news_kind::prepared:
      end_feeding(st, it->second);
      return tell_machine(self, weights::prepared{news.worker, update, news.hash});
    case weight_news_kind::refused:
      return tell_machine(self, weights::refused{news.worker, update,
                                                 error{static_cast<errc>(news.code),
                                                       one_line("worker '" + it->second.hello.name
                                                                + "': " + news.why),
                                                       {}}});
    case weight_news_kind::upstream_failed:
      return tell_machine(self, weights::upstream_failed{news.worker, update});
    case weight_news_kind::flipped:
      if (st.machine->on(weights::flipped{news.worker, update}) == weights::verdict::accepted)
        for (const auto& w : st.machine->workers())
          if (w.worker == news.worker)
            it->second.hello.weight_epoch = w.serves.epoch;
      return settle(self);
  }
}

bool may_place(self_ptr self) {
  auto& st = self->state;
  if (!st.held)
    return !st.paused;
  if (!st.quiet) {
    const auto& batches = st.book->batches();
    const bool done = st.held->flip == weights::flip_at::chunk_edge
                        ? st.policy->running() == 0
                        : std::none_of(batches.begin(), batches.end(), [](const auto& b) {
                            return b.second.phase == batch_phase::running;
                          });
    st.scores_wait = done;
    if (done && std::all_of(st.workers.begin(), st.workers.end(), [](const auto& w) {
          return w.second.scoring.empty();
        })) {
      st.quiet = true;
      st.quiet_ns = now_ns(self);
      decide_flip(self);
      return false;
    }
  }
  return !st.quiet && !st.paused && st.held->flip == weights::flip_at::between_batches;
}

void take_weights_staged(self_ptr self, const weights_staged& outcome) {
  auto& st = self->state;
  if (!st.update || st.update->number.value != outcome.update || !st.update->staging)
    return; // aborted meanwhile
  auto& u = *st.update;
  u.staging = false;
  auto& cargo = *outcome.cargo;
  const bool incomplete = !cargo && !u.directory; // its controller may send what is missing
  auto committed = cargo ? commit(self, std::move(*cargo)) : result<void>{fail(cargo)};
  if (!committed) {
    answer(self, *std::exchange(u.from, std::nullopt), committed.error());
    if (incomplete)
      st.machine->received(u.number);
    else
      (void)st.machine->abort(u.epoch);
  }
  settle(self);
}

void end_feeding(scheduler_state& st, scheduler_state::worker& w) {
  if (const auto update = std::exchange(w.feeding, 0); update != 0)
    st.parts.weights->withdraw(update);
}

void take(self_ptr self, const controller_request& from, const wire::begin_weights& r) {
  auto& st = self->state;
  if (!serves_weights(self, from))
    return;
  const auto begun =
    st.machine->begin(spec_of(r.epoch, r.changed_only, r.flip, r.allow_non_finite));
  if (!begun)
    return answer(self, from, begun.error());
  const auto& u = note_begin(self, from, *begun);
  st.parts.weights->begin(begun->value, !r.changed_only);
  answer(self, from, wire::weights_begun{u.epoch, weight_store::bucket_bytes_max});
  settle(self);
}

void take(self_ptr self, const controller_request& from, const wire::weight_bucket& r) {
  auto& st = self->state;
  if (!serves_weights(self, from) || !receives(self, from, r.epoch, "bucket"))
    return;
  if (auto added = st.parts.weights->add(r); !added)
    return answer(self, from, added.error());
  st.machine->received(st.update->number);
  settle(self);
  answer(self, from, wire::request_done{});
}

void take(self_ptr self, const controller_request& from, const wire::commit_weights& r) {
  auto& st = self->state;
  if (!serves_weights(self, from) || !receives(self, from, r.epoch, "commit"))
    return;
  auto& u = *st.update;
  u.from = from;
  u.staging = true;
  u.hash = r.hash;
  u.count = r.tensors;
  st.parts.weights->finish(tell_staged(self));
}

void take(self_ptr self, const controller_request& from, const wire::abort_weights& r) {
  auto& st = self->state;
  const auto epoch = r.epoch == 0 && st.update ? st.update->epoch : r.epoch;
  if (auto aborted = st.machine->abort(epoch); !aborted)
    return answer(self, from, aborted.error());
  answer(self, from, wire::request_done{});
  settle(self);
}

void take(self_ptr self, const controller_request& from, const wire::load_weights& r) {
  auto& st = self->state;
  if (!serves_weights(self, from))
    return;
  if (const auto problem = directory_problem(r.directory); !problem.empty())
    return answer(self, from, error{errc::io_failed, problem, {}});
  const auto begun = st.machine->begin(spec_of(r.epoch, false, r.flip, r.allow_non_finite));
  if (!begun)
    return answer(self, from, begun.error());
  auto& u = note_begin(self, from, *begun);
  u.from = from;
  u.staging = u.directory = true;
  st.parts.weights->begin(begun->value, true);
  st.parts.weights->read(r.directory, tell_staged(self));
  settle(self);
}

void take(self_ptr self, const controller_request& from, const wire::rollback_weights&) {
  auto& st = self->state;
  if (!serves_weights(self, from))
    return;
  const auto begun = st.machine->rollback();
  if (!begun)
    return answer(self, from, begun.error());
  note_begin(self, from, *begun).from = from;
  settle(self);
}

wire::weights_status weights_status_of(self_ptr self) {
  const auto& st = self->state;
  wire::weights_status out;
  out.phase = to_string(st.machine->at());
  if (const auto current = st.machine->current())
    out.epoch = current->epoch;
  if (const auto previous = st.machine->previous())
    out.previous_epoch = previous->epoch;
  out.paused = st.paused;
  if (st.update) {
    out.next_epoch = st.update->epoch;
    out.bytes_total = st.update->bytes;
    out.seconds = seconds(st.update->began_ns, now_ns(self));
  }
  for (const auto& w : st.machine->workers())
    if (w.preparing || w.prepared)
      out.workers.push_back({w.worker, w.bytes, w.prepared});
  return out;
}

} // namespace rollcast::shell
