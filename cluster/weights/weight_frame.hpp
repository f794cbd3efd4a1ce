#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace rollcast {

/// What one message between two weight exchanges says.
enum class weight_message : std::uint8_t {
  want = 1,    ///< Puller: send slice `slice`, now or once you have it.
  slice = 2,   ///< Holder: slice `slice`; the payload follows as a second frame.
  wait = 3,    ///< Holder: what you asked for is not here yet, I am alive.
  refused = 4, ///< Holder: you will not get it; the text follows as a second frame.
};

/// In `refused`: no slice of the update can be had, not only one.
inline constexpr std::uint32_t no_slice = UINT32_MAX;

/// The first frame of every message. On the wire: 48 bytes, little-endian, fixed offsets.
struct weight_frame {
  weight_message kind{};
  errc code = errc::ok;      ///< In `refused`.
  std::uint64_t update = 0;  ///< Which update of the cluster's weights.
  std::uint64_t attempt = 0; ///< The puller's number; answers repeat it, so late ones are known.
  std::uint32_t slice = 0;   ///< Index through all tensors of the manifest.
  std::uint32_t slice_bytes = 0; ///< In `want`: what the puller's cargo is cut by.
  content_hash manifest = {}; ///< In `want`: `weight_cargo::manifest`, so that both mean the same.
  friend bool operator==(const weight_frame&, const weight_frame&) = default;
};

inline constexpr std::size_t weight_frame_bytes = 48;
inline constexpr std::uint32_t weight_frame_magic = 0x31575752; // "RWW1"

std::array<std::byte, weight_frame_bytes> encode(const weight_frame& frame) noexcept;

/// Fails with `frame_malformed` (detail: which field and its value).
result<weight_frame> decode_weight_frame(std::span<const std::byte> bytes);

} // namespace rollcast
