#pragma once

#include "actors/herald.hpp"
#include "actors/price_meter.hpp"
#include "actors/probe.hpp"
#include "actors/protocol.hpp"
#include "cluster/collective/runner.hpp"
#include "cluster/drafts/shared_drafter.hpp"
#include "cluster/telemetry/metrics.hpp"
#include "cluster/transport/kv_exchange.hpp"
#include "cluster/weights/weight_exchange.hpp"
#include "engine/cache/spill_store.hpp"
#include "engine/draft/speculator.hpp"
#include "engine/step/engine.hpp"

#include <caf/all.hpp>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>

namespace rollcast {

struct decode_worker_options {
  worker_hello hello; ///< Sent at registration; counters are filled in then.
  caf::timespan beat_interval = std::chrono::milliseconds{200};
  caf::timespan request_timeout = std::chrono::seconds{5}; ///< For the scheduler to answer.
  std::size_t weight_threads = 1;       ///< That pack new weights while the others serve.
  std::uint64_t weight_memory_kept = 0; ///< Bytes of an update kept for the next one.
};

/// What the DECODE WORKER works with. The exchange and the engine outlive the actor.
struct decode_worker_parts {
  std::shared_ptr<engine> device;
  std::shared_ptr<spill_store> spilled;
  std::shared_ptr<speculator> drafts; ///< Null: nothing is drafted.
  kv_mover* exchange = nullptr;
  std::shared_ptr<worker_metrics> metrics;
  std::shared_ptr<worker_pulse> pulse;
  std::shared_ptr<shared_drafter> shared = {}; ///< Null: `drafts` knows only what runs here.
  weight_mover* weights = nullptr;
  std::shared_ptr<model_drafter> model = {};            ///< Null: no model drafts.
  std::shared_ptr<collective::runner> collectives = {}; ///< Null: it is in no group.
  /// Runs what takes long and is no actor's: packing new weights. Null: on threads of its own.
  std::function<void(std::function<void()>)> aside = {};
};

/// State of the DECODE WORKER actor.
struct decode_worker_state {
  /// A response that this worker has anything of.
  struct held {
    std::uint32_t attempt = 0;
    std::uint32_t position = 0; ///< Tokens it had before the chunk.
    std::uint64_t pull = 0;     ///< The pull under way, or 0.
    price_meter::clock::time_point pull_began;
    chunk_assignment waiting; ///< What to run once the pull has ended.
  };

  /// Weights on their way into the second buffer.
  struct preparation {
    std::uint64_t number = 0; ///< The worker's own: a scheduler that restarts counts anew.
    weight_order order;
    std::shared_ptr<weight_cargo> cargo;        ///< Null if nothing differs from `over`.
    std::shared_ptr<const device_weights> over; ///< Gives what is not pulled; null if all is.
    std::shared_ptr<const device_weights> ready;
    bool pulling = false;
    bool waiting = false;   ///< For the collective group to bring it, instead of pulling,
    std::uint64_t came = 0; ///< and so much of it was here when that was last looked at.
  };
  /// The weights of an epoch that is not served.
  struct kept_epoch {
    std::uint64_t epoch = 0;
    std::shared_ptr<const device_weights> weights;
  };

  decode_worker_parts parts;
  decode_worker_options options;
  std::uint64_t epoch = 0;
  std::shared_ptr<const device_weights> base; ///< Started from; null once nothing needs it.
  bool base_covered = false; ///< What is served is not made of it, only what was before may be.
  std::optional<preparation> preparing;
  std::uint64_t preparations = 0;
  std::optional<kept_epoch> previous; ///< Until the next order.
  tensor_memory weight_memory;
  herald voice;             ///< Speaks while a step holds the actor's thread.
  std::jthread packer;      ///< The only one: the next waits until it has stopped.
  registry_actor scheduler; ///< Null while the link is down.
  worker_id id;             ///< 0 until registered.
  std::map<response_id, held> responses;
  price_meter prices;
  double drafted_s = 0;      ///< Of `speculation_figures`, as last seen.
  bool stepping = false;     ///< A `step` message is on its way.
  bool beat_pending = false; ///< A beat is not answered yet.
  bool draining = false;

  static inline const char* name = "decode_worker";
};

/// Owns one engine: admits chunks, steps the engine by sending itself `step` so that the mailbox is
/// served between two steps, reports chunk ends, exports and imports KV. A step holds its
/// thread for as long as it takes, so the pool needs one more.
decode_worker_actor::behavior_type
decode_worker(decode_worker_actor::stateful_pointer<decode_worker_state> self,
              decode_worker_parts parts, decode_worker_options options);

} // namespace rollcast

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::decode_worker_parts)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(rollcast::decode_worker_options)
