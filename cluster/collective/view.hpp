#pragma once

#include "engine/base/ids.hpp"

#include <cstdint>
#include <string>
#include <vector>

/// What the coordinator of a collective group and its members tell each other.
namespace rollcast::collective {

/// KV of one response on its way from rank to rank.
struct move {
  worker_id puller = {};  ///< Who wants it,
  std::uint64_t pull = 0; ///< and its number for that.
  std::uint32_t from = 0; ///< Ranks.
  std::uint32_t to = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const move&, const move&) = default;
};

/// Slices of a weight update on their way from one rank to all others: a byte for each, 1 if the
/// root has it, else 0; then the bytes of all, where those that it lacks are anything.
struct cast {
  std::uint64_t update = 0;
  std::uint32_t root = 0;
  std::uint32_t first = 0; ///< Slice.
  std::uint32_t count = 0; ///< 0: this is no cast.
  std::uint64_t bytes = 0; ///< Of all of them, whether the root has them or not.
  bool last = false;       ///< What a member lacks after it, this way does not bring.
  friend bool operator==(const cast&, const cast&) = default;
};

enum class order_kind : std::uint8_t {
  make_id, ///< Make what the ranks of this epoch are given.
  form,    ///< Form a group of `members`, as rank `rank`, from `id`.
  open,    ///< All are ready: transfers may be asked for.
  run,     ///< Begin this round now: `moves` that this rank is part of, or `slices`.
  decline, ///< `moves` will not be made, nor `slices.update` be cast.
  abort,   ///< The epoch is over (`why`).
};

/// What a member must do. An order of an epoch that it is not in is old news.
struct order {
  order_kind kind = order_kind::abort;
  std::uint64_t epoch = 0; ///< Of membership: one group of workers, one communicator.
  std::uint32_t rank = 0;
  std::vector<worker_id> members = {}; ///< By rank.
  std::string id = {};
  std::uint64_t round = 0;
  std::vector<move> moves = {};
  cast slices = {};
  std::string why = {};
};

enum class news_kind : std::uint8_t {
  id_made,    ///< `id`.
  ready,      ///< The group is formed here.
  failed,     ///< The epoch is over here (`why`).
  round_done, ///< `round` is over here.
  wanted,     ///< `moves`, from this rank, whose bytes are ready on both sides.
  offered,    ///< `slices` are here, and the others may lack them.
  /// `moves` will not go from here, or are not waited for here any more; or what is left of
  /// `slices.update` will not go from here. Of any epoch.
  declined,
};

/// How a member is getting on.
struct news {
  worker_id worker = {};
  news_kind kind = news_kind::failed;
  std::uint64_t epoch = 0;
  std::string id = {};
  std::uint64_t round = 0;
  std::vector<move> moves = {}; ///< Ranks are not filled in.
  cast slices = {};             ///< So.
  std::string why = {};
};

} // namespace rollcast::collective
