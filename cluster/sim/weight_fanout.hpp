#pragma once

#include <cstdint>
#include <optional>

namespace rollcast::sim {

/// Who sends an update of the weights to whom.
enum class fanout_shape : std::uint8_t {
  chain, ///< coordinator -> 1 -> 2 -> ...
  tree,  ///< Every node to two others.
  star,  ///< The coordinator to all.
};

/// One node's full-duplex link: what it sends does not slow what it receives.
struct fanout_link {
  double bytes_per_s = 1.25e9; ///< 10 Gbit/s each way.
  double latency_s = 100e-6;   ///< From the last byte sent to the first slice there.
};

struct fanout_load {
  fanout_shape shape = fanout_shape::chain;
  std::uint32_t workers = 2;
  std::uint64_t bytes = 400'000'000; ///< 100 M parameters in f32.
  std::uint64_t slice_bytes = 2u << 20;
  fanout_link link;
  /// The worker that dies once it holds half of the slices, if any; counted from 0 in chain order.
  std::optional<std::uint32_t> dies;
  double notice_s = 0.1; ///< Until its successors are redirected to its upstream.
};

/// Plays one update event by event. A node forwards a slice once it has the whole of it (store and
/// forward), sends one slice at a time, and takes turns between those that pull from it, in order
/// of asking; a redirected worker asks only for the slices that it lacks.
/// @returns seconds until the last worker that lives has every slice; links only: no hashing, no
///          packing
/// @pre workers > 0, slice_bytes > 0, bytes > 0
double fanout_seconds(const fanout_load& load);

} // namespace rollcast::sim
