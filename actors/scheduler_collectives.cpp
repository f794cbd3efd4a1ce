#include "actors/scheduler_shell.hpp"

#include <spdlog/spdlog.h>

namespace rollcast::shell {
namespace {

collective::instant instant_of(self_ptr self) {
  return collective::instant{static_cast<std::int64_t>(now_ns(self))};
}

void show_counts(self_ptr self) {
  auto& st = self->state;
  const auto& m = st.parts.metrics->collective;
  const auto& now = st.collectives.counts();
  m.members.set(static_cast<double>(st.collectives.members().size()));
  m.epochs_opened.raise_to(now.epochs);
  m.epochs_failed.raise_to(now.failures);
  m.rounds.raise_to(now.rounds);
  m.kv_bytes.raise_to(now.moved_bytes);
  m.weight_bytes.raise_to(now.cast_bytes);
}

/// Sends what the coordinator has to say, and tells people of its epochs.
void settle(self_ptr self) {
  auto& st = self->state;
  for (auto& o : st.collectives.drain())
    if (const auto it = st.workers.find(o.to); it != st.workers.end())
      self->send(it->second.hello.collective_seat, o.to, std::move(o.what));
  const auto& counts = st.collectives.counts();
  if (counts.epochs > st.collective_seen.epochs)
    spdlog::info("{} workers form a collective group", st.collectives.members().size());
  if (counts.failures > st.collective_seen.failures)
    spdlog::warn("the collective group failed, its transfers go by ZeroMQ: {}",
                 st.collectives.last_failure());
  st.collective_seen = counts;
  show_counts(self);
}

} // namespace

void join_collective(self_ptr self, worker_id id) {
  auto& st = self->state;
  const auto& hello = st.workers.at(id).hello;
  if (hello.collective_device.empty() || !hello.collective_seat)
    return;
  st.collectives.joined(id, hello.collective_device, instant_of(self));
  settle(self);
}

void leave_collective(self_ptr self, worker_id id) {
  self->state.collectives.left(id, instant_of(self));
  settle(self);
}

void take_collective_news(self_ptr self, const collective::news& what) {
  self->state.collectives.on(what, instant_of(self));
  settle(self);
}

void turn_collectives(self_ptr self) {
  self->state.collectives.turn(instant_of(self));
  settle(self);
}

} // namespace rollcast::shell
