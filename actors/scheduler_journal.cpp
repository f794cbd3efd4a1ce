#include "actors/bytes.hpp"
#include "actors/scheduler_shell.hpp"

#include <spdlog/spdlog.h>

#include <chrono>
#include <limits>

namespace rollcast::shell {
namespace {

/// How many numbers of each kind one scheduler process may use up.
constexpr std::uint64_t numbers_each = 1'000'000'000;

std::uint64_t unix_ns() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                      std::chrono::system_clock::now().time_since_epoch())
                                      .count());
}

void restore_identity(scheduler_state& st, const journal::image& found) {
  // Without the second of the two records it is open: nothing was begun yet.
  if (!found.identity || !found.weights)
    return;
  const auto& was = *found.identity;
  st.identity = {{was.numerics, found.weights->epoch, was.vocabulary, was.context_max,
                  std::numeric_limits<std::uint64_t>::max(), std::nullopt},
                 was.model,
                 was.numerics_hash,
                 found.weights->weights,
                 was.eos_token_ids};
  st.book->numerics_profile = was.numerics;
  st.book->weight_version = found.weights->epoch;
  st.parts.metrics->registry.describe(ROLLCAST_VERSION, was.numerics);
  st.parts.metrics->weight_epoch.set(static_cast<double>(found.weights->epoch));
}

/// Goes on with a batch that had started.
void go_on(self_ptr self, batch_record& batch) {
  const auto required = batch.spec.required_weight_version;
  result<void> ok;
  if (!self->state.identity)
    ok =
      fail(errc::bad_config, "batch '" + batch.spec.batch_key
                               + "' had started, but the journal knows of no cluster that it ran "
                                 "on; submit it again");
  else if (required && *required != self->state.book->weight_version)
    ok = fail(errc::stale_epoch, "batch '" + batch.spec.batch_key + "' requires weight version "
                                   + std::to_string(*required) + ", the cluster went on to "
                                   + std::to_string(self->state.book->weight_version)
                                   + " at a chunk's edge");
  else
    ok = give_to_policy(self, batch);
  if (!ok)
    fail_batch(self, batch, ok.error());
}

} // namespace

void restore(self_ptr self) {
  auto& st = self->state;
  const auto found = std::exchange(*st.parts.journal->found, {});
  const auto numbers = (found.generation - 1) * numbers_each;
  st.next_worker = numbers + 1;
  restore_identity(st, found);
  std::optional<weights::served_weights> serves;
  if (st.identity)
    serves = {found.weights->epoch, found.weights->weights};
  st.machine.emplace(std::string{}, serves, found.epoch_promised, numbers);
  st.weights_changed = found.epoch_promised > 0;
  model_ends ends;
  if (st.identity)
    ends = {from_bytes<token_id>(st.identity->eos_token_ids), st.identity->model.context_max};
  st.book->restore(found, ends, {now_ns(self), unix_ns()});
  std::size_t running = 0;
  for (auto& [id, batch] : st.book->batches())
    if (batch.phase == batch_phase::running) {
      ++running;
      go_on(self, batch);
    }
  if (found.generation > 1)
    spdlog::info("the journal brought back {} batches, {} of them running; epoch {}",
                 st.book->batches().size(), running, st.book->weight_version);
}

void note(const scheduler_state& st, journal::record what) {
  if (st.parts.journal)
    st.parts.journal->sink->write(std::move(what));
}

result<void> takes_batches(const scheduler_state& st) {
  if (!st.parts.journal)
    return {};
  if (auto health = st.parts.journal->health(); !health.takes_batches)
    return fail(errc::queue_full, "no new batch is taken on: " + health.why_not);
  return {};
}

void show_journal(const scheduler_state& st) {
  if (!st.parts.journal)
    return;
  const auto health = st.parts.journal->health();
  const auto& m = st.parts.metrics->journal;
  m.bytes.set(static_cast<double>(health.bytes));
  m.pending_bytes.set(static_cast<double>(health.pending_bytes));
  m.full.set(health.takes_batches ? 0 : 1);
}

// -- the change of weights ------------------------------------------------------------------------

void decide_flip(self_ptr self) {
  auto& st = self->state;
  const auto update = st.machine->update();
  if (!st.parts.journal || !update || !update->hash)
    return tell_machine(self, weights::quiet{st.held->update});
  note(st, journal::epoch_decided{update->epoch, *update->hash});
  st.deciding = {st.held->update, st.parts.journal->written(), now_ns(self)};
  note_durable(self);
}

void note_durable(self_ptr self) {
  auto& st = self->state;
  if (!st.deciding)
    return;
  if (st.parts.journal->durable() >= st.deciding->mark) {
    const auto update = st.deciding->update;
    st.deciding.reset();
    return tell_machine(self, weights::quiet{update});
  }
  const auto patience = static_cast<std::uint64_t>(st.options.weight_deadlines.deciding.count());
  if (now_ns(self) - st.deciding->since_ns < patience)
    return;
  const auto epoch = st.machine->update()->epoch;
  const auto health = st.parts.journal->health();
  (void)st.machine->abort(
    epoch, error{errc::io_failed,
                 "epoch " + std::to_string(epoch)
                   + ": the journal could not write that it is served, within "
                   + std::to_string(patience / 1'000'000) + " ms: "
                   + (health.why_not.empty() ? "its disk is slow; look there" : health.why_not),
                 {}});
  settle_machine(self);
}

void undecide_flip(self_ptr self) {
  auto& st = self->state;
  if (!st.deciding)
    return;
  st.deciding.reset();
  if (const auto serves = st.machine->current())
    note(st, journal::epoch_decided{serves->epoch, serves->hash});
}

} // namespace rollcast::shell
