#pragma once

#include "actors/frontend.hpp"
#include "actors/scheduler.hpp"
#include "cluster/collective/member.hpp"
#include "cluster/journal/journal.hpp"
#include "cluster/security/tls_files.hpp"
#include "cluster/transport/kv_exchange.hpp"
#include "cluster/weights/weight_exchange.hpp"
#include "engine/backend/backend.hpp"
#include "engine/base/error.hpp"
#include "engine/cache/spill_store.hpp"
#include "engine/collective/communicator.hpp"
#include "engine/draft/speculator.hpp"
#include "engine/step/engine.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

namespace rollcast {

/// How nodes notice that a peer is gone without a word: a partition, a stopped process. A killed
/// one is noticed at once.
struct liveness_options {
  std::chrono::milliseconds heartbeat_interval_ms{500};
  std::chrono::milliseconds heartbeat_timeout_ms{2'500};
};

struct scheduler_node_options {
  frontend_options frontend;
  std::string cluster_address = "127.0.0.1"; ///< Where workers connect to; "" is every address.
  std::uint16_t cluster_port = 7451;         ///< 0 takes any free port.
  tls_options tls;                           ///< Of that port; with it nobody else comes in.
  std::string metrics_address = "127.0.0.1";
  std::optional<std::uint16_t> metrics_port = 7452; ///< None: no HTTP; 0 takes any free port.
  liveness_options liveness;
  scheduler_options scheduler;
  weight_exchange_options weights; ///< Where workers pull new weights from.
  std::uint64_t weight_memory_kept = std::uint64_t{4} << 30; ///< Of an update, for the next one.
  journal::journal_options journal;               ///< Without a path nothing outlives the process.
  std::chrono::milliseconds drain_ms_max{10'000}; ///< For edges to come in after `stop`.
};

/// What a scheduler has bound.
struct scheduler_ports {
  std::string frontend_endpoint; ///< For controllers: "tcp://127.0.0.1:7450".
  std::uint16_t cluster_port = 0;
  std::optional<std::uint16_t> metrics_port;
};

/// Runs a scheduler until `stop` is requested. Then it begins nothing new, has workers cut what
/// they run at an edge, and returns when it has the edges. Calls `ready` once everything is bound.
/// Logs through spdlog and prints nothing. Fails with `address_in_use` or `bad_config`. One node a
/// process at most per port; several nodes may share a process, each on its own thread.
result<void> run_scheduler(const scheduler_node_options& options, std::stop_token stop,
                           const std::function<void(const scheduler_ports&)>& ready = {});

struct worker_node_options {
  std::string name = "worker";
  std::string model; ///< Name of the model, for people.
  std::string scheduler_host = "127.0.0.1";
  std::uint16_t scheduler_port = 7451;
  tls_options tls; ///< Of the connection to it.
  kv_exchange_options kv;
  std::string metrics_address = "127.0.0.1";
  std::optional<std::uint16_t> metrics_port; ///< None: no HTTP; 0 takes any free port.
  liveness_options liveness;
  engine_limits engine;
  spill_limits spill;
  speculation_options speculation;
  std::shared_ptr<model_drafter> draft_model; ///< Of mtp and eagle3; of auto if there is one.
  std::string
    draft_server; ///< Its endpoint, for group and auto; "": siblings elsewhere stay unheard.
  std::shared_ptr<curve_policy> draft_keys; ///< Of the connection to it.
  std::uint32_t slots = 0; ///< Responses running or queued at once; 0: an eighth over batch_max.
  std::uint64_t weight_epoch = 0;
  weight_exchange_options weights; ///< Where other workers pull new weights from.
  std::size_t weight_threads = 1;  ///< That pack new weights while the device serves.
  std::uint64_t weight_memory_kept = std::uint64_t{4} << 30; ///< Of an update, for the next one.
  /// The way from this device to those of other workers; null: all goes by ZeroMQ.
  std::shared_ptr<communicator_maker> collectives;
  collective::member_limits collective_limits;
  std::chrono::milliseconds give_up_ms{60'000}; ///< Without a scheduler; then `peer_lost`.
  /// From `stop` to the end at the latest. Half of it is for running chunks to end by themselves;
  /// then they are cut at an edge, and the rest is for peers to fetch KV.
  std::chrono::milliseconds drain_ms_max{20'000};
  std::string version; ///< Of the program, which the scheduler must have too; "" is this one's.
  /// A worker that has not turned for so long is not healthy: above the longest step.
  std::chrono::seconds stuck_after_s{60};
  /// Called in place of returning what is given when a thread does not end that the end waits for:
  /// a step, or a collective group whose device hangs. Should end the process; if it returns, or is
  /// none, the node waits, for ever if need be.
  std::function<void(const result<void>& ended)> abandon;
};

/// What a worker has bound.
struct worker_ports {
  std::string data_endpoint;
  std::optional<std::uint16_t> metrics_port;
};

/// Runs a worker over a device that has weights and KV blocks. It connects, registers, works, and
/// connects anew whenever it loses its scheduler. On `stop` it drains: takes no new chunks, ends or
/// cuts those it has, lets peers fetch its KV, and returns when the scheduler has every edge. Calls
/// `ready` once its ports are bound (it may not be registered yet).
///
/// Fails with `peer_lost` (no scheduler for `give_up_ms`), `numerics_mismatch` (the cluster has
/// another model or profile), `address_in_use`, or `bad_config`.
result<void> run_worker(const worker_node_options& options, std::unique_ptr<backend> device,
                        std::stop_token stop,
                        const std::function<void(const worker_ports&)>& ready = {});

} // namespace rollcast
