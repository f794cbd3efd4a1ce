#include "actors/scheduler_shell.hpp"

#include <algorithm>
#include <string>

namespace rollcast::shell {
namespace {

bool has_passed(caf::timespan span, std::uint64_t since_ns, std::uint64_t now) {
  return now > since_ns && now - since_ns >= static_cast<std::uint64_t>(span.count());
}

} // namespace

void keep_staging(self_ptr self) {
  auto& st = self->state;
  if (!st.update || !st.update->staging
      || has_passed(st.options.weight_deadlines.preparing, st.update->began_ns, now_ns(self)))
    return;
  st.machine->received(st.update->number);
  settle_machine(self);
}

void watch_pause(self_ptr self) {
  auto& st = self->state;
  const auto open = [](const auto& b) { return b.second.phase == batch_phase::running; };
  const auto& batches = st.book->batches();
  const auto count = std::count_if(batches.begin(), batches.end(), open);
  if (!st.held || st.quiet || st.held->flip == weights::flip_at::chunk_edge || !st.paused
      || st.policy->running() > 0 || count == 0) {
    st.stuck_ns = 0;
    return;
  }
  const auto now = now_ns(self);
  if (st.stuck_ns == 0)
    st.stuck_ns = now;
  if (!has_passed(st.options.weight_deadlines.paused, st.stuck_ns, now))
    return;
  st.stuck_ns = 0;
  const auto epoch = st.machine->update()->epoch;
  (void)st.machine->abort(
    epoch,
    error{errc::timed_out,
          "epoch " + std::to_string(epoch) + ": serving is paused and " + std::to_string(count)
            + " batches are open, which cannot end before the flip; resume first, or update "
              "with the flip at chunk edges",
          {}});
  settle_machine(self);
}

void watch_unserved(self_ptr self) {
  auto& st = self->state;
  const auto serves = [](const auto& w) { return w.second.routable || w.second.feeding != 0; };
  if (st.workers.empty() || st.update
      || std::any_of(st.workers.begin(), st.workers.end(), serves)) {
    st.unserved_ns = 0;
    return;
  }
  const auto now = now_ns(self);
  if (st.unserved_ns == 0)
    st.unserved_ns = now;
  bool ended = false;
  for (auto& [id, batch] : st.book->batches()) {
    const auto since = std::max(st.unserved_ns, batch.submitted_ns);
    if (batch.phase == batch_phase::ended
        || !has_passed(st.options.weight_deadlines.unserved, since, now))
      continue;
    fail_batch(self, batch,
               {errc::stale_epoch,
                "batch '" + batch.spec.batch_key + "' waits for weight version "
                  + std::to_string(st.book->weight_version)
                  + ", which was lost with the processes that had it; publish weights, then "
                    "submit it under another key",
                {}});
    ended = true;
  }
  if (ended)
    activate(self); // of those submitted later
}

} // namespace rollcast::shell
