#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "kernels/types.hpp"

#include <cstdint>
#include <string_view>

namespace rollcast {

/// A named set of arithmetic rules. Two workers with the same profile hash, the same weights and
/// the same request give the same bits; the scheduler never mixes two profiles in a batch.
struct numerics_profile {
  std::string_view name;            ///< e.g. "cpu-f32-v1".
  kernels::arithmetic arithmetic{}; ///< What the GEMMs do.
  kernels::dtype kv_type{};         ///< What the KV cache stores.
  std::string_view contract;        ///< Every constant that decides a bit, in words.
  bool gpu = false;                 ///< Only a GPU computes it; a CPU device refuses it.
  /// Of the GPU, once it is known: 80, 90, 100. What a matrix instruction does to the last bit is
  /// the architecture's, so that two of them are two profiles. 0 on a CPU, and in the emulator.
  std::uint32_t architecture = 0;
  /// False if the bits of a row may depend on the rows beside it: a yardstick of speed. Nothing
  /// that is promised is computed with such a profile, and who computes with it must have asked for
  /// it.
  bool exact = true;

  /// Hash of name, contract and architecture: what workers report at registration.
  content_hash hash() const noexcept;
};

/// The profile used when none is named.
inline constexpr std::string_view default_profile = "cpu-f32-v1";

/// Finds a profile by name; fails with `unsupported_numerics` and the names that exist.
result<numerics_profile> find_profile(std::string_view name);

} // namespace rollcast
