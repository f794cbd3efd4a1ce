#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/memory/kv_bytes.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace rollcast {

struct kv_image;

/// A faster way for the bytes of KV images between two workers, which may be there or not: what a
/// `kv_exchange` asks and checks goes by ZeroMQ all the same, and the bytes too when this fails.
/// Any thread may call each member; none blocks.
class kv_carrier {
public:
  /// Memory that a carrier may write to for as long as it holds on to it.
  using memory = std::shared_ptr<kv_bytes>;
  /// Hears once how it ended. On a thread of the carrier; must not block.
  using done_function = std::function<void(result<void>)>;

  virtual ~kv_carrier() = default;

  /// Whether images may come from that worker this way. @returns our own incarnation, or 0.
  virtual worker_id reaches(worker_id holder) const = 0;

  /// Fills `into` with the image that the holder gives under our number `pull`. `done` hears of it
  /// within a bounded time, whatever happens to the holder; after a failure the memory may still be
  /// written to, so it is of no more use.
  virtual void fetch(std::uint64_t pull, memory into, done_function done) = 0;

  /// Sends an image to a worker that fetches it under its number `pull`.
  virtual void give(worker_id puller, std::uint64_t pull,
                    std::shared_ptr<const kv_image> image) = 0;
};

} // namespace rollcast
