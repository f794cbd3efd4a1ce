#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

/// What the update machine is told and what it decides.
namespace rollcast::weights {

/// One attempt to give weights to workers: an update of the fleet, a rollback, or the feeding of
/// one worker that lacks what the others serve. Never reused, so that a late message about another
/// attempt is known for what it is.
using update_id = strong_id<struct update_tag>;
/// One arming of a timer; never reused.
using timer_id = strong_id<struct timer_tag>;

/// An epoch and the hash of its content.
struct served_weights {
  std::uint64_t epoch = 0;
  content_hash hash;
  friend bool operator==(const served_weights&, const served_weights&) = default;
};

/// When the fleet may change over.
enum class flip_at : std::uint8_t {
  between_batches, ///< No open batch sees two epochs, unless nobody is left who serves the first.
  chunk_edge,      ///< Once the running chunks have ended; responses may span epochs.
};

enum class coverage : std::uint8_t {
  complete,     ///< Every tensor: any worker can take it, whatever it serves.
  changed_only, ///< Changes over the epoch that the fleet serves.
};

/// What a controller asks for.
struct update_spec {
  std::uint64_t epoch = 0; ///< Above every epoch that was ever served; 0: the next.
  coverage covers = coverage::complete;
  flip_at flip = flip_at::between_batches;
  bool allow_non_finite = false;
};

/// Where an update is, for status and metrics.
enum class phase : std::uint8_t {
  idle,
  receiving,    ///< The controller sends.
  distributing, ///< Workers pull, check and pack.
  waiting,      ///< All are prepared; what runs must end first.
  flipping,     ///< Told to flip; from here on only forward.
};

/// Returns the name that metrics and status use.
std::string_view to_string(phase at) noexcept;

// -- news of the fleet ----------------------------------------------------------------------------

/// A worker is registered. Ids ascend in the order of registering.
struct worker_joined {
  worker_id worker;
  std::string host;
  served_weights serves;   ///< What it says that it serves, hashed by itself.
  bool as_started = false; ///< It serves the very checkpoint that it was started from.
};
struct worker_lost {
  worker_id worker;
};
/// The worker lives and works on it; sent about once a second even when nothing came.
struct progressed {
  worker_id worker;
  update_id update;
  std::uint64_t bytes = 0; ///< Held of the update so far.
};
/// It is checked and packed in the second buffer.
struct prepared {
  worker_id worker;
  update_id update;
  content_hash hash; ///< Of the epoch as this worker would serve it.
};
/// The content cannot be served: shapes, missing tensors, NaN, a wrong hash.
struct refused {
  worker_id worker;
  update_id update;
  error why;
};
/// The upstream is silent, gone or does not know the update.
struct upstream_failed {
  worker_id worker;
  update_id update;
};
/// Told to hold for this update, the scheduler has nothing running any more.
struct quiet {
  update_id update;
};
/// The worker serves the update from now on.
struct flipped {
  worker_id worker;
  update_id update;
};
/// A timer ran out.
struct expired {
  timer_id timer;
};

using news = std::variant<worker_joined, worker_lost, progressed, prepared, refused,
                          upstream_failed, quiet, flipped, expired>;

/// What became of news.
enum class verdict : std::uint8_t {
  accepted,
  stale, ///< Of another update or incarnation, or said before. Nothing changed.
};

// -- decisions ------------------------------------------------------------------------------------

/// Which tensors a worker pulls, and over what.
enum class cargo : std::uint8_t {
  sent, ///< Those of the update that the controller sent, over what the worker serves.
  /// Every tensor that the coordinator was ever sent up to that epoch, over the checkpoint that the
  /// worker was started from: what it serves may hold tensors of an epoch that was rolled back.
  whole,
};

/// Pull, check and pack into the second buffer, then say `prepared`, `refused` or
/// `upstream_failed`.
struct prepare {
  worker_id worker;
  update_id update;
  std::uint64_t epoch = 0;
  cargo what = cargo::sent;
  bool allow_non_finite = false;
  std::optional<worker_id> upstream; ///< None: the coordinator.
};
/// Go on pulling from another.
struct redirect {
  worker_id worker;
  update_id update;
  std::optional<worker_id> upstream;
};
/// Forget the update.
struct cancel {
  worker_id worker;
  update_id update;
};
/// Place nothing new (`chunk_edge`: no chunk; `between_batches`: no chunk of a batch that has not
/// begun), and say `quiet` once nothing runs and, between batches, no batch is open. May come a
/// second time, with `chunk_edge`: then nobody is left who could end a batch.
struct hold {
  update_id update;
  flip_at flip = flip_at::between_batches;
};
/// Place again.
struct release {};
/// Serve the second buffer, drop all KV, and say `flipped`.
struct flip {
  worker_id worker;
  update_id update;
  std::uint64_t epoch = 0;
  bool back = false; ///< The second buffer is what was served before: a rollback.
};
/// Treat the worker as lost. It may register again, as another incarnation.
struct expel {
  worker_id worker;
  error why;
  bool for_good = false; ///< It would fail again: it must not come back by itself.
};
/// The worker may be given work.
struct admit {
  worker_id worker;
};

enum class outcome : std::uint8_t { committed, aborted, rolled_back };

/// The update is over, and the fleet serves `serves`.
struct ended {
  update_id update;
  std::uint64_t epoch = 0; ///< That was asked for.
  outcome how = outcome::aborted;
  served_weights serves;
  error why; ///< When aborted.
};

/// What a timer bounds; the shell knows for how long.
enum class deadline : std::uint8_t {
  receiving, ///< Between two parts from the controller (`update_machine::received`).
  preparing, ///< For all workers together.
  silence,   ///< Between two signs of life of one worker that prepares, or flips on its own.
  waiting,   ///< Until the scheduler is quiet.
  flipping,  ///< For all workers together; short.
};
/// Say `expired` after the time of this kind. Nothing is ever disarmed: a timer that does not
/// matter any more is old news.
struct arm {
  timer_id timer;
  deadline kind = deadline::receiving;
};

using decision =
  std::variant<prepare, redirect, cancel, hold, release, flip, expel, admit, ended, arm>;

} // namespace rollcast::weights
