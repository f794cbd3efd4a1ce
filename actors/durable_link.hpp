#pragma once

#include "actors/controller_link.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace rollcast {

/// Tells controllers only what a scheduler that is started again would say too: holds each event
/// back until the journal has on disk what was written when the event was sent. The order of events
/// stays, except that a status waits for nothing, nor does a refusal, unless it may be news. What
/// is held is bounded: results beyond it are dropped, and their controllers ask for them again.
class durable_link final : public controller_link {
public:
  /// @param written, durable  count records, as those of `journal::journal`; any thread
  durable_link(std::shared_ptr<controller_link> to, std::function<std::uint64_t()> written,
               std::function<std::uint64_t()> durable);

  void send(const std::string& peer, wire::event_envelope what) override;
  /// Lets go what is on disk. Any thread; after every commit.
  void committed();
  /// Events held back.
  std::size_t waiting() const;

private:
  struct held {
    std::uint64_t mark = 0; ///< Records that must be on disk.
    std::size_t bytes = 0;
    std::string peer;
    wire::event_envelope what;
  };

  static constexpr std::size_t held_bytes_max = std::size_t{256} << 20;

  void let_go();

  std::shared_ptr<controller_link> to_;
  std::function<std::uint64_t()> written_;
  std::function<std::uint64_t()> durable_;
  mutable std::mutex mutex_;
  std::deque<held> held_;      ///< Marks ascend. Guarded by `mutex_`, as is what follows.
  std::size_t held_bytes_ = 0; ///< About, of all of it.
};

} // namespace rollcast
