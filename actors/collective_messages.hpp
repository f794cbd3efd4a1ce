#pragma once

#include "cluster/collective/view.hpp"

#include <caf/all.hpp>

/// How orders and news of a collective group travel between scheduler and workers. Bytes of KV and
/// weights never do.
namespace rollcast::collective {

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, move& x) {
  return f(caf::meta::type_name("collective_move"), x.puller, x.pull, x.from, x.to, x.bytes);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, cast& x) {
  return f(caf::meta::type_name("collective_cast"), x.update, x.root, x.first, x.count, x.bytes,
           x.last);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, order& x) {
  auto kind = static_cast<std::uint8_t>(x.kind);
  auto load = [&]() -> caf::error {
    if (kind > static_cast<std::uint8_t>(order_kind::abort))
      return caf::sec::invalid_argument;
    x.kind = static_cast<order_kind>(kind);
    return caf::none;
  };
  return f(caf::meta::type_name("collective_order"), kind, x.epoch, x.rank, x.members, x.id,
           x.round, x.moves, x.slices, x.why, caf::meta::load_callback(load));
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, news& x) {
  auto kind = static_cast<std::uint8_t>(x.kind);
  auto load = [&]() -> caf::error {
    if (kind > static_cast<std::uint8_t>(news_kind::declined))
      return caf::sec::invalid_argument;
    x.kind = static_cast<news_kind>(kind);
    return caf::none;
  };
  return f(caf::meta::type_name("collective_news"), x.worker, kind, x.epoch, x.id, x.round, x.moves,
           x.slices, x.why, caf::meta::load_callback(load));
}

} // namespace rollcast::collective
