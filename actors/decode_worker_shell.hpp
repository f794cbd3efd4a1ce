#pragma once

#include "actors/decode_worker.hpp"

/// Inside of the decode worker actor, in two files: decode_worker.cpp (the table of messages,
/// chunks, the link to the scheduler) and decode_worker_weights.cpp (second buffer, flips, scores).
/// Private to them.
namespace rollcast::worker_shell {

using self_ptr = decode_worker_actor::stateful_pointer<decode_worker_state>;

/// Drops the response in any state, if the attempt held is not above the one named.
void drop(self_ptr self, response_id response, std::uint32_t attempt);

/// Forgets all work: whatever the scheduler gives out next, it gives to a new incarnation.
void lose_scheduler(self_ptr self, error why);

// -- weights, decode_worker_weights.cpp ---------------------------------------

void prepare(self_ptr self, const weight_order& order);
void redirect(self_ptr self, std::uint64_t update, const std::string& upstream);
/// Forgets what is being prepared or was. Whoever waits for it hears nothing.
void forget_preparation(self_ptr self);
void end_weight_pull(self_ptr self, const weights_pulled& outcome);
void end_packing(self_ptr self, const weights_packed& outcome);
void flip(self_ptr self, std::uint64_t update, std::uint64_t epoch, bool back);
caf::result<std::string> score(self_ptr self, const score_order& order);
/// Says that it lives, while it prepares.
void tell_progress(self_ptr self);

} // namespace rollcast::worker_shell
