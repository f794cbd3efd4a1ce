#pragma once

#include "actors/collective_messages.hpp"
#include "actors/weight_messages.hpp"
#include "cluster/policy/view.hpp"
#include "cluster/security/client_limits.hpp"
#include "cluster/transport/kv_exchange.hpp"
#include "cluster/wire/messages.hpp"
#include "engine/backend/device_weights.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"
#include "engine/step/request.hpp"

#include <caf/all.hpp>

#include <bit>
#include <cstdint>
#include <memory>
#include <string>

namespace rollcast {

class weight_cargo;

/// Takes the orders of a collective group for one worker (the incarnation that is meant).
using collective_seat_actor = caf::typed_actor<caf::reacts_to<worker_id, collective::order>>;

// -- what messages carry ------------------------------------------------------

/// Who a worker is and what it can hold, as it says when it registers.
struct worker_hello {
  std::string name;
  std::string host;
  std::uint64_t pid = 0;
  std::string data_endpoint;    ///< Where peers pull KV from it.
  std::string weights_endpoint; ///< Where peers pull weights from it.
  std::string model;
  std::string numerics;
  content_hash numerics_hash = {};
  content_hash weights_hash = {};
  std::uint64_t weight_epoch = 0;
  bool as_started = false; ///< It serves the checkpoint that its process was started from.
  std::uint32_t kv_blocks = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t slots = 0; ///< Responses it may hold running or queued at once.
  std::uint32_t kv_bytes_per_token = 0;
  std::uint64_t spill_tokens = 0; ///< KV that it can keep beside its blocks.
  std::uint32_t spill_page_tokens = 1;
  std::uint32_t context_max = 0;
  std::uint32_t vocabulary = 0;
  expert_layout experts = {};    ///< Without layers, of a dense model.
  std::string eos_token_ids;     ///< int32, little-endian.
  std::string speculate = "off"; ///< How it drafts; changes no bit.
  /// What it takes part in collective groups with, named among all devices that there are: a host's
  /// name says nothing of where a container's GPU is. "": it takes no part.
  std::string collective_device;
  collective_seat_actor collective_seat; ///< Where orders of such a group go; null: nowhere.
  engine_stats stats = {};               ///< Where its counters stand.
};

/// A chunk, as a worker receives it. Carries the whole response so far, so that any worker can run
/// it with nothing but this.
struct chunk_assignment {
  worker_id worker = {};   ///< The incarnation it is meant for.
  std::uint64_t epoch = 0; ///< Of the weights that must run it.
  response_id response = {};
  std::uint32_t attempt = 0;
  group_id group = {};
  bool probe = false; ///< The first of its group, which waits to learn from it.
  std::string tokens; ///< int32, little-endian: the prompt, then what was generated.
  std::uint32_t prompt_tokens = 0;
  sampling_params sampling = {};
  std::uint32_t generate_max = 0;
  bool reserve = true;            ///< Take the whole chunk's KV blocks at once.
  bool wants_experts = false;     ///< Ids of experts are asked for,
  std::uint32_t experts_from = 0; ///< from this position on.
  std::string pull_endpoint;      ///< Not empty: fetch the KV from there first.
  worker_id pull_from = {};       ///< The incarnation that has it.
};

/// What became of a chunk.
struct chunk_outcome {
  worker_id worker = {};
  std::uint64_t epoch = 0; ///< Of the weights that made the tokens.
  response_id response = {};
  std::uint32_t attempt = 0;
  std::uint32_t position = 0; ///< Tokens that the response had before this chunk.
  std::string tokens;         ///< int32, little-endian: the new ones.
  std::string logprobs;       ///< float32, one a token.
  std::string kept_masses;    ///< float32, one a token; empty when all are 1.
  std::string experts;        ///< Ids of experts that come with the tokens, if they are asked for.
  std::uint8_t why = 0;       ///< A `chunk_end`.
  bool kv_parked = false;     ///< Its KV stays on the worker.
  engine_stats stats = {};
};

/// A sign of life with figures.
struct worker_beat {
  worker_id worker = {};
  engine_stats stats = {};
  std::uint32_t running = 0;
  std::uint32_t waiting = 0;
  kv_usage kv = {};
  policy::kv_prices prices = {};
};

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, engine_stats& x) {
  return f(caf::meta::type_name("engine_stats"), x.steps, x.rows, x.prompt_tokens,
           x.recomputed_tokens, x.generated_tokens, x.preemptions, x.draft_tokens,
           x.accepted_tokens, x.verifications, x.busy_ns);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, expert_layout& x) {
  return f(caf::meta::type_name("expert_layout"), x.layers, x.per_token, x.id_bytes);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, kv_usage& x) {
  return f(caf::meta::type_name("kv_usage"), x.total, x.free, x.running, x.parked);
}

namespace policy {

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, kv_prices& x) {
  return f(caf::meta::type_name("kv_prices"), x.move_fixed_ns, x.move_ps_per_byte,
           x.restore_ps_per_byte, x.recompute_ns_per_token);
}

} // namespace policy

/// Floats travel as their bits: what a response is a function of must arrive exactly.
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, sampling_params& x) {
  auto temperature = std::bit_cast<std::uint32_t>(x.temperature);
  auto top_p = std::bit_cast<std::uint32_t>(x.top_p);
  auto min_p = std::bit_cast<std::uint32_t>(x.min_p);
  auto load = [&]() -> caf::error {
    x.temperature = std::bit_cast<float>(temperature);
    x.top_p = std::bit_cast<float>(top_p);
    x.min_p = std::bit_cast<float>(min_p);
    return caf::none;
  };
  return f(caf::meta::type_name("sampling_params"), temperature, top_p, x.top_k, min_p,
           x.max_new_tokens, x.min_new_tokens, x.seed, x.ignore_eos, x.stop_token_ids,
           caf::meta::load_callback(load));
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, worker_hello& x) {
  return f(caf::meta::type_name("worker_hello"), x.name, x.host, x.pid, x.data_endpoint,
           x.weights_endpoint, x.model, x.numerics, x.numerics_hash, x.weights_hash, x.weight_epoch,
           x.as_started, x.kv_blocks, x.block_tokens, x.slots, x.kv_bytes_per_token, x.spill_tokens,
           x.spill_page_tokens, x.context_max, x.vocabulary, x.experts, x.eos_token_ids,
           x.speculate, x.collective_device, x.collective_seat, x.stats);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, chunk_assignment& x) {
  return f(caf::meta::type_name("chunk_assignment"), x.worker, x.epoch, x.response, x.attempt,
           x.group, x.probe, x.tokens, x.prompt_tokens, x.sampling, x.generate_max, x.reserve,
           x.wants_experts, x.experts_from, x.pull_endpoint, x.pull_from);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, chunk_outcome& x) {
  return f(caf::meta::type_name("chunk_outcome"), x.worker, x.epoch, x.response, x.attempt,
           x.position, x.tokens, x.logprobs, x.kept_masses, x.experts, x.why, x.kv_parked, x.stats);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, worker_beat& x) {
  return f(caf::meta::type_name("worker_beat"), x.worker, x.stats, x.running, x.waiting, x.kv,
           x.prices);
}

// -- what never leaves the process --------------------------------------------

/// A controller's request, from the socket thread.
struct controller_request {
  std::string peer; ///< ZeroMQ routing id: where the answer goes.
  std::shared_ptr<const wire::request_envelope> envelope;
  std::string client = {};   ///< Its name in the allow list, or its address; "" has no limits.
  client_limits limits = {}; ///< What it may have under way.
  std::string owner = {};    ///< Whose the batches are that it submits; "" is everybody's.
  bool operates = true;      ///< It may ask about the batches of others.
};

/// A peer wants KV, from the KV exchange's thread.
struct export_query {
  kv_request what;
  kv_ticket ticket;
};

/// A pull has ended, from the KV exchange's thread.
struct pull_outcome {
  response_id response = {};
  std::uint32_t attempt = 0;
  std::shared_ptr<result<kv_image>> image;
};

/// A pull of weights has ended, from the weight exchange's thread.
struct weights_pulled {
  std::uint64_t preparation = 0;     ///< The worker's own number, which no scheduler uses again.
  std::shared_ptr<result<void>> how; ///< Null: time to look whether the group does anything.
  bool cast = false;                 ///< By the collective group.
};

/// Weights were packed into the second buffer, or not, from a thread of their own.
struct weights_packed {
  std::uint64_t preparation = 0; ///< As in `weights_pulled`.
  std::shared_ptr<result<std::shared_ptr<const device_weights>>> weights;
};

/// The tensors of an update are all read or received, and hashed, or not; from a thread of its own.
struct weights_staged {
  std::uint64_t update = 0;
  std::shared_ptr<result<std::shared_ptr<weight_cargo>>> cargo;
};

} // namespace rollcast

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::weights_pulled)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::weights_packed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::weights_staged)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::controller_request)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::export_query)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::pull_outcome)

CAF_BEGIN_TYPE_ID_BLOCK(rollcast, caf::first_custom_type_id)

  CAF_ADD_TYPE_ID(rollcast, (rollcast::chunk_assignment))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::chunk_outcome))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::collective::news))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::collective::order))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::group_id))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::response_id))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::score_order))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::weight_news))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::weight_order))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::worker_beat))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::worker_hello))
  CAF_ADD_TYPE_ID(rollcast, (rollcast::worker_id))

  CAF_ADD_ATOM(rollcast, rollcast::atom, admit, "admit")
  CAF_ADD_ATOM(rollcast, rollcast::atom, again, "again")
  CAF_ADD_ATOM(rollcast, rollcast::atom, beat, "beat")
  CAF_ADD_ATOM(rollcast, rollcast::atom, cancel, "cancel")
  CAF_ADD_ATOM(rollcast, rollcast::atom, cut, "cut")
  CAF_ADD_ATOM(rollcast, rollcast::atom, decode, "decode")
  CAF_ADD_ATOM(rollcast, rollcast::atom, drain, "drain")
  CAF_ADD_ATOM(rollcast, rollcast::atom, due, "due")
  CAF_ADD_ATOM(rollcast, rollcast::atom, durable, "durable")
  CAF_ADD_ATOM(rollcast, rollcast::atom, failed, "failed")
  CAF_ADD_ATOM(rollcast, rollcast::atom, flip, "flip")
  CAF_ADD_ATOM(rollcast, rollcast::atom, gone, "gone")
  CAF_ADD_ATOM(rollcast, rollcast::atom, hello, "hello")
  CAF_ADD_ATOM(rollcast, rollcast::atom, join, "linkup")
  CAF_ADD_ATOM(rollcast, rollcast::atom, lost, "lost")
  CAF_ADD_ATOM(rollcast, rollcast::atom, moved, "moved")
  CAF_ADD_ATOM(rollcast, rollcast::atom, plan, "plan")
  CAF_ADD_ATOM(rollcast, rollcast::atom, prepare, "prepare")
  CAF_ADD_ATOM(rollcast, rollcast::atom, redirect, "redirect")
  CAF_ADD_ATOM(rollcast, rollcast::atom, release, "release")
  CAF_ADD_ATOM(rollcast, rollcast::atom, report, "report")
  CAF_ADD_ATOM(rollcast, rollcast::atom, score, "score")
  CAF_ADD_ATOM(rollcast, rollcast::atom, spill, "spill")
  CAF_ADD_ATOM(rollcast, rollcast::atom, step, "step")
  CAF_ADD_ATOM(rollcast, rollcast::atom, weights, "weights")

CAF_END_TYPE_ID_BLOCK(rollcast)

namespace rollcast {

// -- interfaces ---------------------------------------------------------------

/// What a worker may say to the scheduler. Published on the network.
using registry_actor = caf::typed_actor<
  // Registers the sender as a worker and monitors it. Answers the id of this incarnation; fails
  // with `numerics_mismatch` (profile, context, or weights of the same epoch differ from the
  // cluster's). It gets chunks once it is told `admit`.
  caf::replies_to<atom::hello, worker_hello>::with<worker_id>,
  // A chunk has ended. Believed only from the chunk's holder, at the edge that the scheduler knows.
  // One that was cut may bring no token.
  caf::reacts_to<atom::report, chunk_outcome>,
  // A pull succeeded (response, attempt, bytes, by the collective group): the source may let go.
  caf::reacts_to<atom::moved, worker_id, response_id, std::uint32_t, std::uint64_t, bool>,
  // KV that an attempt left here is gone (response, attempt).
  caf::reacts_to<atom::lost, worker_id, response_id, std::uint32_t>,
  // A chunk could not be started (response, attempt, why).
  caf::reacts_to<atom::failed, worker_id, response_id, std::uint32_t, std::string>,
  // A chunk came for an incarnation that is over, or for an epoch that it does not serve (why).
  caf::reacts_to<atom::failed, worker_id, std::string>,
  // Sign of life. Fails with `peer_lost` if the incarnation is not registered: register anew.
  caf::replies_to<atom::beat, worker_beat>::with<caf::ok_atom>,
  // How it is getting on with a `weight_order` or a flip.
  caf::reacts_to<atom::weights, weight_news>,
  // How it is getting on in its collective group.
  caf::reacts_to<collective::news>,
  // The worker wants no new chunks; none is sent after the answer. Fails like `beat`.
  caf::replies_to<atom::drain, worker_id>::with<caf::ok_atom>>;

/// Owns the placement of every chunk, the batches and their results.
using scheduler_actor = registry_actor::extend<
  // A controller's request; answered through the controller link, never by a message.
  caf::reacts_to<controller_request>,
  // A controller's connection has gone; its results wait until somebody resumes.
  caf::reacts_to<atom::gone, std::string>,
  // INTERNAL: the process is to end. No new batch, no placement; running chunks are cut at an edge.
  caf::reacts_to<atom::drain>,
  // INTERNAL: acts on what the policy has to say, once for all messages that were waiting.
  caf::reacts_to<atom::plan>,
  // INTERNAL: a chunk that a worker did not start has waited long enough to be placed again.
  caf::reacts_to<atom::again, worker_id, response_id, std::uint32_t>,
  // INTERNAL: a timer of the weight update has run out.
  caf::reacts_to<atom::due, std::uint64_t>,
  // INTERNAL: sequences wait to be scored (the job).
  caf::reacts_to<atom::score, std::uint64_t>,
  // INTERNAL: the journal has more on disk.
  caf::reacts_to<atom::durable>,
  // INTERNAL: the tensors of an update are there.
  caf::reacts_to<weights_staged>,
  // INTERNAL: figures and health.
  caf::reacts_to<caf::tick_atom>>;

/// Runs chunks on one device.
using decode_worker_actor = caf::typed_actor<
  // Takes a chunk on; its end is told by `report`, that it did not begin by `failed`. Not a
  // request: CAF keeps the timer of each until it runs out, answered or not.
  caf::reacts_to<atom::decode, chunk_assignment>,
  // Drops the response in any state, if the attempt held is not above the one named.
  caf::reacts_to<atom::release, worker_id, response_id, std::uint32_t>,
  // Moves parked KV of that attempt out of the blocks, into spill space; `lost` if that fails.
  caf::reacts_to<atom::spill, worker_id, response_id, std::uint32_t>,
  // That worker is lost: what is being pulled from it is computed instead, without waiting for a
  // timeout.
  caf::reacts_to<atom::gone, worker_id>,
  // All responses of that group are over: what they wrote drafts for nobody.
  caf::reacts_to<atom::gone, group_id>,
  // Ends that chunk at an edge where it stands (response, attempt): it goes on elsewhere.
  caf::reacts_to<atom::cut, worker_id, response_id, std::uint32_t>,
  // A link to a scheduler is there: registers with it.
  caf::reacts_to<atom::join, registry_actor>,
  // Takes no new work; tells the scheduler. The node watches `worker_pulse` for the end. Said
  // again, it shows that all said before has arrived.
  caf::reacts_to<atom::drain>,
  // Ends the chunks that run now, at an edge where they stand. From the node for worker 0.
  caf::reacts_to<atom::cut, worker_id>,
  // It serves the cluster's weights now, so chunks will come.
  caf::reacts_to<atom::admit, worker_id>,
  // Makes weights ready beside those that are served; `weights` tells how it goes. A later order
  // takes the place of an earlier one.
  caf::reacts_to<atom::prepare, weight_order>,
  // Goes on pulling them from another endpoint.
  caf::reacts_to<atom::redirect, worker_id, std::uint64_t, std::string>,
  // Forgets what that order made.
  caf::reacts_to<atom::cancel, worker_id, std::uint64_t>,
  // Serves what that order made, as this epoch; or, if it says `back`, what was served before. All
  // KV is dropped, each loss told by `lost`.
  caf::reacts_to<atom::flip, worker_id, std::uint64_t, std::uint64_t, bool>,
  // Log-probabilities (float32) of the tokens behind the prompts, one sequence after another. Fails
  // with `stale_epoch` (not held), or as `engine::score`.
  caf::replies_to<atom::score, score_order>::with<std::string>,
  // INTERNAL: a pull of weights has ended; weights were packed.
  caf::reacts_to<weights_pulled>, caf::reacts_to<weights_packed>,
  // INTERNAL: runs one step of the engine and asks for the next.
  caf::reacts_to<atom::step>,
  // INTERNAL: sends the beat.
  caf::reacts_to<caf::tick_atom>,
  // Exports parked KV for a peer, between two steps.
  caf::reacts_to<export_query>,
  // Imports KV that was pulled, or computes it.
  caf::reacts_to<pull_outcome>>;

} // namespace rollcast
