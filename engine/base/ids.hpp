#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace rollcast {

/// A number that cannot be confused with another kind of number. `Tag` is never defined; it only
/// makes the types distinct.
template <class Tag>
struct strong_id {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(strong_id, strong_id) = default;

  template <class Inspector> // CAF 0.17 and the wire codec both walk this.
  friend typename Inspector::result_type inspect(Inspector& f, strong_id& x) {
    return f(x.value);
  }
};

/// A batch, as the scheduler numbers it.
using batch_id = strong_id<struct batch_tag>;
/// A group (one prompt and its G responses), unique over all batches of one scheduler.
using group_id = strong_id<struct group_tag>;
/// One response of a group, unique over all batches of one scheduler.
using response_id = strong_id<struct response_tag>;
/// One incarnation of a worker; never reused.
using worker_id = strong_id<struct worker_tag>;

/// Position in the vocabulary. Negative ids are invalid everywhere.
using token_id = std::int32_t;

} // namespace rollcast

template <class Tag>
struct std::hash<rollcast::strong_id<Tag>> {
  std::size_t operator()(rollcast::strong_id<Tag> id) const noexcept {
    return std::hash<std::uint64_t>{}(id.value);
  }
};
