#pragma once

#include "engine/base/hash.hpp"
#include "engine/model/tensor_info.hpp"

#include <cstddef>
#include <span>
#include <stop_token>

namespace rollcast {

/// The weights of one epoch as one device holds them, ready to compute with. Immutable; lives as
/// long as somebody holds it, used or not.
class device_weights {
public:
  virtual ~device_weights() = default;

  /// `epoch_hash_of(tensors())`: what workers that serve one epoch must agree on.
  virtual content_hash hash() const noexcept = 0;

  /// Every tensor by content, in name order.
  virtual std::span<const tensor_info> tensors() const noexcept = 0;

  /// Those of the model alone, where a drafter's come with them.
  virtual const device_weights& bare() const noexcept { return *this; }
};

/// How weights are prepared. No bit of them depends on `threads`.
struct prepare_options {
  std::size_t threads = 1;       ///< Taken from those that serve meanwhile.
  bool allow_non_finite = false; ///< Take NaN and infinities instead of refusing them.
  std::stop_token stop = {};     ///< Looked at within milliseconds; then it fails: `cancelled`.
};

} // namespace rollcast
