#include "actors/scheduler_shell.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>
#include <variant>

namespace rollcast::shell {
namespace {

void cut_all(self_ptr self) {
  for (const auto& [id, w] : self->state.workers)
    self->send(w.handle, atom::cut_v, id);
}

/// Whether a request would begin something that the scheduler does not live to end.
bool begins(scheduler_state& st, const wire::request& body, const std::string& owner) {
  if (const auto* batch = std::get_if<wire::submit_batch>(&body))
    return !st.book->find(batch->batch_key, owner);
  return std::holds_alternative<wire::begin_weights>(body)
         || std::holds_alternative<wire::load_weights>(body)
         || std::holds_alternative<wire::rollback_weights>(body)
         || std::holds_alternative<wire::score>(body);
}

} // namespace

void begin_stop(self_ptr self) {
  auto& st = self->state;
  if (std::exchange(st.stopping, true))
    return;
  spdlog::info("stopping: {} chunks are cut at an edge", st.policy->running());
  cut_all(self);
  note_stopped(self);
}

void note_stopped(self_ptr self) {
  if (self->state.policy->running() == 0)
    self->state.parts.pulse->stopped = true;
}

bool refuse_while_stopping(self_ptr self, const controller_request& request) {
  auto& st = self->state;
  if (!st.stopping || !begins(st, request.envelope->body, request.owner))
    return false;
  const auto* batch = std::get_if<wire::submit_batch>(&request.envelope->body);
  answer(self, request,
         {errc::peer_lost,
          "the scheduler is stopping and begins nothing new; ask again when it is back",
          {}},
         batch != nullptr ? batch->batch_key : std::string{});
  return true;
}

void cut_if_all_leave(self_ptr self) {
  const auto& workers = self->state.workers;
  if (std::all_of(workers.begin(), workers.end(),
                  [](const auto& entry) { return entry.second.draining; }))
    cut_all(self);
}

void take_unbegun(self_ptr self, const chunk_outcome& outcome) {
  auto& st = self->state;
  const policy::chunk_finished finished{outcome.response, outcome.worker, outcome.attempt,
                                        outcome.position, false,          outcome.kv_parked};
  if (st.policy->on(finished) != policy::verdict::accepted)
    return; // old news
  --st.book->locate(outcome.response).batch->running;
  plan_soon(self);
}

} // namespace rollcast::shell
