#pragma once

#include "cluster/security/curve_policy.hpp"
#include "cluster/weights/weight_cargo.hpp"
#include "engine/base/error.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace rollcast {

/// Where a process listens for those who pull weights, and bounds of what it does for them.
struct weight_exchange_options {
  std::string bind = "tcp://127.0.0.1:*"; ///< ZeroMQ endpoint; `*` takes any free port.
  std::string advertise_host; ///< What peers dial instead of the bound host; "" is that.
  std::uint32_t slice_bytes_max = 64u << 20; ///< A larger frame loses its sender the connection.
  std::uint32_t slices_in_flight = 8;        ///< That a puller asks for ahead.
  std::size_t parked_per_peer_max = 64; ///< Requests of one peer for slices that are not here yet.
  std::size_t parking_peers_max = 256;
  std::size_t offers_max = 8; ///< Updates at one time.
  std::size_t pulls_max = 8;
  /// Freed memory that malloc keeps, in the whole process, while weights are pulled, instead of
  /// giving it back after every slice and asking for it again; 0: it does not.
  std::uint32_t malloc_keeps_bytes = 64u << 20;
  std::chrono::milliseconds wait_every{1000};   ///< How often a peer hears that it still waits.
  std::chrono::milliseconds idle_ms_max{5000};  ///< Silence after which a pull is given up.
  std::shared_ptr<curve_policy> keys = nullptr; ///< Of the cluster; null: nothing is encrypted.
};

/// Moves the slices of weight updates between processes: what scheduler and workers need of
/// `weight_exchange`, which says more of each member. A simulation has its own.
class weight_mover {
public:
  /// Hears how much of the wanted bytes is here, after each slice. On a thread of the mover; must
  /// not block.
  using progress_function = std::function<void(std::uint64_t here, std::uint64_t wanted)>;
  /// Hears once how a pull ended. On a thread of the mover; must not block.
  using done_function = std::function<void(result<void>)>;

  virtual ~weight_mover() = default;
  virtual const std::string& endpoint() const noexcept = 0;
  virtual void offer(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo) = 0;
  virtual void withdraw(std::uint64_t update) = 0;
  virtual void pull(std::uint64_t update, std::string endpoint, std::shared_ptr<weight_cargo> cargo,
                    progress_function progress, done_function done) = 0;
  virtual void redirect(std::uint64_t update, std::string endpoint) = 0;
  virtual void cancel(std::uint64_t update) = 0;
};

/// Moves the slices of weight updates between processes over ZeroMQ: a ROUTER for those who pull
/// from here, a DEALER for each update that is pulled, one thread for all of it.
///
/// A cargo that is being pulled is offered too, so a chain of processes forwards each slice as it
/// comes: a request for a slice that is not here yet is parked. Whoever pulls asks for what it
/// lacks only, so it may be redirected to any other holder and goes on where it was. Every pull
/// ends: complete, refused, or given up after `idle_ms_max` of silence of its upstream.
class weight_exchange final : public weight_mover {
public:
  /// Counters since `open`; any thread may read them.
  struct counters {
    std::atomic<std::uint64_t> bytes_in{0};  ///< Of slices that were taken.
    std::atomic<std::uint64_t> bytes_out{0}; ///< Of slices handed to ZeroMQ.
    std::atomic<std::uint64_t> slices_in{0};
    std::atomic<std::uint64_t> slices_out{0};
    std::atomic<std::uint64_t> slices_repeated{0};   ///< That came although they were here.
    std::atomic<std::uint64_t> tensors_refetched{0}; ///< With a wrong hash the first time.
    std::atomic<std::uint64_t> pulls_done{0};
    std::atomic<std::uint64_t> pulls_failed{0};
    std::atomic<std::uint64_t> frames_rejected{0}; ///< Malformed ones, from either side.
  };

  /// Binds and starts the thread. Fails with `address_in_use` or `bad_config` (detail: endpoint).
  static result<std::unique_ptr<weight_exchange>> open(weight_exchange_options options);

  /// Stops the thread; pulls that are under way hear `cancelled`.
  ~weight_exchange() override;
  weight_exchange(const weight_exchange&) = delete;
  weight_exchange& operator=(const weight_exchange&) = delete;

  /// What peers connect to, e.g. "tcp://127.0.0.1:40213".
  const std::string& endpoint() const noexcept override;

  /// Serves the cargo under this number until `withdraw`. A cargo offered before under the same
  /// number is forgotten; the oldest offer goes when there are more than `offers_max`. Any thread.
  void offer(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo) override;

  /// Serves it no more; who waits for a slice hears `cancelled`. A pull goes on. Any thread.
  void withdraw(std::uint64_t update) override;

  /// Fills `cargo` from the exchange at `endpoint`, and offers it until `withdraw`, whatever comes
  /// of the pull. An upstream that does not know the update yet is asked again until the silence
  /// ends it. `done` hears nothing (complete), or `timed_out`, `stale_epoch` (the upstream did not
  /// know the update, or lacks a tensor for good), `cancelled` (also: withdrawn there), `peer_lost`
  /// (no endpoint), `frame_malformed` (sizes, another manifest, a hash that was wrong twice),
  /// `batch_conflict` (already pulling it), `queue_full`. What came stays in the cargo: pulling the
  /// same cargo again fetches the rest. Any thread.
  void pull(std::uint64_t update, std::string endpoint, std::shared_ptr<weight_cargo> cargo,
            progress_function progress, done_function done) override;

  /// Goes on pulling from another exchange. Nothing happens if the pull has ended. Any thread.
  void redirect(std::uint64_t update, std::string endpoint) override;

  /// Gives up a pull; `done` hears `cancelled`, unless it has ended already. The cargo stays
  /// offered. Any thread.
  void cancel(std::uint64_t update) override;

  const counters& counts() const noexcept;

private:
  class loop;
  explicit weight_exchange(std::unique_ptr<loop> l) noexcept;
  std::unique_ptr<loop> loop_;
};

} // namespace rollcast
