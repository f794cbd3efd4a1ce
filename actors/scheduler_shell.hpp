#pragma once

#include "actors/scheduler.hpp"

#include <string>

/// Inside of the scheduler actor, in three files: scheduler.cpp (the table of messages, workers
/// coming and going), scheduler_chunks.cpp (chunks out, chunks back) and scheduler_batches.cpp
/// (what controllers ask for). Private to them.
namespace rollcast::shell {

using self_ptr = scheduler_actor::stateful_pointer<scheduler_state>;

/// Nanoseconds of the actor system's clock, which tests advance by hand.
std::uint64_t now_ns(self_ptr self);

/// Asks for a turn of `place` behind the messages that wait already.
void plan_soon(self_ptr self);

// -- workers, scheduler.cpp ---------------------------------------------------

/// Forgets a worker; its chunks wait again at their last edge.
void lose_worker(self_ptr self, worker_id id, const std::string& why);
/// Takes newer counters of a worker.
void take_stats(self_ptr self, worker_id id, const engine_stats& stats);

// -- chunks, scheduler_chunks.cpp ---------------------------------------------

void place(self_ptr self);
void take_outcome(self_ptr self, const chunk_outcome& outcome);
void take_moved(self_ptr self, worker_id target, response_id response, std::uint32_t attempt,
                std::uint64_t bytes);
void take_failed(self_ptr self, worker_id worker, response_id response, std::uint32_t attempt,
                 const std::string& why);
/// A chunk that was not started has waited; the policy may place it again.
void place_again(self_ptr self, worker_id worker, response_id response, std::uint32_t attempt);
/// Counts the loss of a response's worker, which may end its batch.
void note_loss(self_ptr self, response_id response, const std::string& why);

// -- batches, scheduler_batches.cpp -------------------------------------------

void serve(self_ptr self, const controller_request& request);
/// Starts queued batches that may run now.
void activate(self_ptr self);
/// Pushes what the batch's receiver may be sent.
void deliver(self_ptr self, batch_record& batch);
/// Gives a response its result, and tells everybody who must know.
void finish_response(self_ptr self, batch_book::place at, wire::finish_reason reason);
/// Ends a batch that cannot go on. What is finished stays deliverable, and so does `why`.
void fail_batch(self_ptr self, batch_record& batch, const error& why);

} // namespace rollcast::shell
