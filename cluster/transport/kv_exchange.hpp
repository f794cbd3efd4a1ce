#pragma once

#include "cluster/security/curve_policy.hpp"
#include "cluster/transport/kv_carrier.hpp"
#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/step/engine.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace rollcast {

/// Where a worker listens for its peers, and bounds of what it does for them.
struct kv_exchange_options {
  std::string bind = "tcp://127.0.0.1:*"; ///< ZeroMQ endpoint; `*` takes any free port.
  std::string advertise_host; ///< What peers dial instead of the bound host; "" is that.
  std::uint64_t image_bytes_max = std::uint64_t{8} << 30; ///< Of one response's KV, in or out.
  /// Of all images on their way in, and as much on their way out. What does not fit waits its turn;
  /// an image larger than this travels alone.
  std::uint64_t images_bytes_max = std::uint64_t{2} << 30;
  /// An image of n positions has ceil(n / group_tokens) * group_bytes bytes; a puller refuses every
  /// other size before it allocates. 0: sizes are not known, and count as nothing above.
  std::uint64_t group_bytes = 0;
  std::uint32_t group_tokens = 1;
  std::uint32_t part_bytes = 128u << 10; ///< Size of one part of an image.
  std::uint32_t parts_in_flight = 32;    ///< Parts a puller asks for ahead.
  std::size_t pulls_active = 8;  ///< Into this worker at one time; bounds the memory of images.
  std::size_t pulls_max = 4'096; ///< Under way and waiting for their turn.
  std::size_t offers_max = 128;  ///< Out of this worker at one time.
  std::chrono::milliseconds idle_ms_max{5000}; ///< Silence after which a transfer is given up.
  /// After which a carrier that says nothing is no longer waited for; its own limits are shorter.
  std::chrono::milliseconds carry_ms_max{30'000};
  /// For how long nothing more is asked of a holder that said nothing at all for `idle_ms_max`.
  std::chrono::milliseconds shun_ms{30'000};
  std::shared_ptr<curve_policy> keys = nullptr;  ///< Of the cluster; null: nothing is encrypted.
  std::shared_ptr<kv_carrier> carrier = nullptr; ///< A faster way to some workers; null: none is.

  std::uint64_t image_bytes(std::uint32_t tokens) const {
    return (std::uint64_t{tokens} + group_tokens - 1) / group_tokens * group_bytes;
  }
};

/// Whose KV is wanted, and from which incarnation.
struct kv_request {
  worker_id holder;
  response_id response;
};

/// A KV image with what proves it.
struct kv_image {
  kv_manifest manifest;
  kv_bytes bytes;
  std::shared_ptr<void> claim; ///< Of a pulled one on `images_bytes_max`, until it is destroyed.
  bool carried = false;        ///< It came by a `kv_carrier`.
  bool fell_back = false;      ///< It should have, and came by ZeroMQ.
};

/// Names one request of a peer until it is answered.
struct kv_ticket {
  std::string peer;       ///< The peer's ZeroMQ routing id.
  std::uint64_t pull = 0; ///< The peer's number for the transfer.
  friend auto operator<=>(const kv_ticket&, const kv_ticket&) = default;
};

/// Moves KV images between workers: what a worker needs of `kv_exchange`, which says more of each
/// member. A simulation has its own.
class kv_mover {
public:
  /// Hears once how a pull ended. On a thread of the mover; must not block.
  using done_function = std::function<void(result<kv_image>)>;

  virtual ~kv_mover() = default;
  virtual std::uint64_t pull(std::string endpoint, const kv_request& request,
                             std::vector<token_id> tokens, done_function done) = 0;
  virtual void cancel(std::uint64_t pull) = 0;
  virtual void answer(const kv_ticket& ticket, result<std::shared_ptr<const kv_image>> image) = 0;
};

/// Moves KV images between workers over ZeroMQ: a ROUTER for those who want ours, a DEALER for each
/// worker we want something from, one thread for all of it.
///
/// A transfer is drawn by the puller, part after part, so a slow or dead puller costs the holder
/// one image and nothing blocks. Every transfer ends: done, refused, or given up after
/// `idle_ms_max` of silence; if the holder said nothing at all for so long, all that is wanted from
/// it is given up, and for `shun_ms` so is at once whatever else is. With a carrier that reaches
/// the holder the parts go by that, and by ZeroMQ if it fails. The holder keeps the response's KV
/// blocks whatever happens here; only the scheduler's release frees them.
class kv_exchange final : public kv_mover {
public:
  /// Answers a peer's request, now or later, by `answer(ticket, ...)`. Called on the exchange's
  /// thread; must not block.
  using serve_function = std::function<void(const kv_request&, const kv_ticket&)>;

  /// Counters since `open`; any thread may read them.
  struct counters {
    std::atomic<std::uint64_t> pulls_done{0};
    std::atomic<std::uint64_t> pulls_failed{0};
    std::atomic<std::uint64_t> carried{0}; ///< Of those done, by the carrier.
    std::atomic<std::uint64_t> bytes_in{0};
    std::atomic<std::uint64_t> bytes_out{0};
    std::atomic<std::uint64_t> frames_rejected{0};
  };

  /// Binds and starts the thread. Fails with `address_in_use` or `bad_config` (detail: endpoint).
  static result<std::unique_ptr<kv_exchange>> open(kv_exchange_options options,
                                                   serve_function serve);

  /// Stops the thread; pulls that are under way hear `cancelled`.
  ~kv_exchange() override;
  kv_exchange(const kv_exchange&) = delete;
  kv_exchange& operator=(const kv_exchange&) = delete;

  /// What peers connect to, e.g. "tcp://127.0.0.1:40213".
  const std::string& endpoint() const noexcept;

  /// Fetches the KV of `request.response` from the worker at `endpoint`. `tokens` is what we know
  /// of the response: the image must hold a non-empty prefix of them, proved by its hash, before a
  /// single part is fetched. @returns the number to cancel it by. `done` hears the verified image,
  /// or `timed_out`, `peer_lost`, `frame_malformed` (sizes or hashes differ), `frame_too_large`,
  /// `queue_full`, `cancelled`, or what the holder refused with. Any thread.
  std::uint64_t pull(std::string endpoint, const kv_request& request, std::vector<token_id> tokens,
                     done_function done) override;

  /// Gives up a pull; `done` hears `cancelled`, unless it has ended already. Any thread.
  void cancel(std::uint64_t pull) override;

  /// Answers a ticket; a ticket whose peer has gone is ignored. Any thread.
  void answer(const kv_ticket& ticket, result<std::shared_ptr<const kv_image>> image) override;

  const counters& counts() const noexcept;

private:
  class loop;
  explicit kv_exchange(std::unique_ptr<loop> l) noexcept;
  std::unique_ptr<loop> loop_;
};

} // namespace rollcast
