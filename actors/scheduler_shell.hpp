#pragma once

#include "actors/scheduler.hpp"

#include <string>

/// Inside of the scheduler actor, in ten files: scheduler.cpp (the table of messages, workers
/// coming and going), scheduler_chunks.cpp (chunks out, chunks back), scheduler_batches.cpp (what
/// controllers ask for), scheduler_weights.cpp (updates of the weights), scheduler_watch.cpp (what
/// an update or a batch waits for too long), scheduler_scores.cpp (log-probabilities of given
/// tokens), scheduler_journal.cpp (what outlives the process), scheduler_collectives.cpp (the group
/// that moves bytes between devices), scheduler_stop.cpp (leaving well) and scheduler_board.cpp
/// (what the page shows). Private to them.
namespace rollcast::shell {

using self_ptr = scheduler_actor::stateful_pointer<scheduler_state>;

/// Nanoseconds of the actor system's clock, which tests advance by hand.
std::uint64_t now_ns(self_ptr self);

/// Asks for a turn of `place` behind the messages that wait already.
void plan_soon(self_ptr self);

// -- workers, scheduler.cpp ---------------------------------------------------

/// Names the process of a worker and what it serves, across its incarnations.
std::string process_of(const worker_hello& hello);
/// Forgets a worker; its chunks wait again at their last edge.
void lose_worker(self_ptr self, worker_id id, const std::string& why);
/// Gives a worker chunks from now on.
void admit_worker(self_ptr self, worker_id id);
/// Takes newer counters of a worker.
void take_stats(self_ptr self, worker_id id, const engine_stats& stats);

// -- chunks, scheduler_chunks.cpp ---------------------------------------------

void place(self_ptr self);
void take_outcome(self_ptr self, const chunk_outcome& outcome);
/// KV that a worker has taken over.
struct moved_kv {
  std::uint64_t bytes = 0;
  bool carried = false; ///< By the collective group.
};
void take_moved(self_ptr self, worker_id target, response_id response, std::uint32_t attempt,
                const moved_kv& what);
void take_failed(self_ptr self, worker_id worker, response_id response, std::uint32_t attempt,
                 const std::string& why);
/// A chunk that was not started has waited; the policy may place it again.
void place_again(self_ptr self, worker_id worker, response_id response, std::uint32_t attempt);
/// Counts the loss of a response's worker, which may end its batch.
void note_loss(self_ptr self, response_id response, const std::string& why);

// -- the collective group, scheduler_collectives.cpp --------------------------

/// An admitted worker may be a member from now on, or is not there any more.
void join_collective(self_ptr self, worker_id id);
void leave_collective(self_ptr self, worker_id id);
void take_collective_news(self_ptr self, const collective::news& what);
void turn_collectives(self_ptr self);

// -- leaving, scheduler_stop.cpp ----------------------------------------------

/// Begins nothing any more and has all workers cut what they run.
void begin_stop(self_ptr self);
/// While stopping: tells the node once no chunk runs any more.
void note_stopped(self_ptr self);
/// While stopping: refuses what would begin something new. @returns whether it has.
bool refuse_while_stopping(self_ptr self, const controller_request& request);
/// If nobody is left to take chunks over from workers that drain, they need not run on.
void cut_if_all_leave(self_ptr self);
/// A chunk was cut before its first token: the response waits again at the edge it came with.
void take_unbegun(self_ptr self, const chunk_outcome& outcome);

// -- batches, scheduler_batches.cpp -------------------------------------------

void serve(self_ptr self, const controller_request& request);
/// Starts queued batches that may run now.
void activate(self_ptr self);
/// Gives the unfinished responses of a batch to the policy, each at its last edge.
result<void> give_to_policy(self_ptr self, batch_record& batch);
/// Pushes what the batch's receiver may be sent.
void deliver(self_ptr self, batch_record& batch);
/// Gives a response its result, and tells everybody who must know.
void finish_response(self_ptr self, batch_book::place at, wire::finish_reason reason);
/// Ends a batch that cannot go on. What is finished stays deliverable, and so does `why`.
void fail_batch(self_ptr self, batch_record& batch, const error& why);

void answer(self_ptr self, const controller_request& to, wire::event body);
void answer(self_ptr self, const controller_request& to, const error& why,
            const std::string& key = {});

// -- weights, scheduler_weights.cpp -------------------------------------------

/// Tells the update machine, and does what it decides.
void tell_machine(self_ptr self, const weights::news& what);
void settle_machine(self_ptr self);
void take_weight_news(self_ptr self, const weight_news& news);
void take_weights_staged(self_ptr self, const weights_staged& outcome);
/// The worker pulls nothing any more that is offered to it alone.
void end_feeding(scheduler_state& st, scheduler_state::worker& w);
void take(self_ptr self, const controller_request& from, const wire::begin_weights& r);
void take(self_ptr self, const controller_request& from, const wire::weight_bucket& r);
void take(self_ptr self, const controller_request& from, const wire::commit_weights& r);
void take(self_ptr self, const controller_request& from, const wire::abort_weights& r);
void take(self_ptr self, const controller_request& from, const wire::load_weights& r);
void take(self_ptr self, const controller_request& from, const wire::rollback_weights& r);
/// Whether a batch may begin; if not, `release` asks again.
inline bool may_begin(const scheduler_state& st) {
  return !st.held;
}
/// Whether chunks may be placed now. Tells the machine when the last has ended that it waits for.
bool may_place(self_ptr self);
wire::weights_status weights_status_of(self_ptr self);

// -- deadlines of weights, scheduler_watch.cpp; at every tick ------------------

/// While a thread reads or hashes for an update, no controller is waited for.
void keep_staging(self_ptr self);
/// Ends an update that waits for batches which cannot end, because serving is paused.
void watch_pause(self_ptr self);
/// Ends batches, running or queued, that have waited too long for weights which neither a worker
/// nor the scheduler has, after a restart of all: their controller, which waits for them, learns
/// that it is to publish.
void watch_unserved(self_ptr self);

// -- scores, scheduler_scores.cpp ---------------------------------------------

void take(self_ptr self, const controller_request& from, const wire::score& r);
/// Gives sequences of the job to workers that have time.
void score_on(self_ptr self, std::uint64_t job);
/// Ends requests that have waited too long.
void expire_scores(self_ptr self);
/// What a lost worker scored waits again. A peer that is gone without a word answers no request.
void lose_scores(self_ptr self, const scheduler_state::worker& lost);

// -- the journal, scheduler_journal.cpp -----------------------------------------

/// Becomes what the journal found. @pre nothing was done yet, and there is a journal
void restore(self_ptr self);
/// Writes it down, if there is a journal.
void note(const scheduler_state& st, journal::record what);
/// Fails with `queue_full` if what a new batch brings could not be written down.
result<void> takes_batches(const scheduler_state& st);
void show_journal(const scheduler_state& st);
/// Nothing runs any more: the fleet is told to flip once that is on disk.
void decide_flip(self_ptr self);
/// More is on disk, or time has passed.
void note_durable(self_ptr self);
/// The update that was about to flip does not.
void undecide_flip(self_ptr self);

// -- the page, scheduler_board.cpp ----------------------------------------------

/// Shows how the cluster stands, about once a second; bounded, however much is under way.
void show_board(self_ptr self);

} // namespace rollcast::shell
