#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace rollcast {

/// What one message between two KV exchanges says.
enum class kv_message : std::uint8_t {
  open = 1,     ///< Puller: offer me the KV of `response`.
  manifest = 2, ///< Holder: it is `tokens` positions, `bytes` bytes, with these hashes.
  want = 3,     ///< Puller: send part `part`.
  part = 4,     ///< Holder: part `part`; the payload follows as a second frame.
  close = 5,    ///< Puller: I need no more of this pull; forget your copy of the image.
  refused = 6,  ///< Holder: I cannot offer it; the text follows as a second frame.
  wait = 7,     ///< Holder: you are in line, I am alive.
  carry = 8, ///< Puller, worker `holder`: give it to your `kv_carrier` for me; and again: I wait.
};

/// The first frame of every message. On the wire: 100 bytes, little-endian, fixed offsets.
struct kv_frame {
  kv_message kind{};
  errc code = errc::ok;   ///< In `refused`.
  std::uint64_t pull = 0; ///< The puller's number for this transfer.
  /// In `open`: the incarnation that is asked; a later one refuses. In `carry`: the one that asks.
  worker_id holder = {};
  response_id response = {};
  std::uint32_t tokens = 0;     ///< In `manifest`: positions held. In `open`: at most so many.
  std::uint32_t part = 0;       ///< In `want` and `part`: index of the part.
  std::uint64_t bytes = 0;      ///< In `manifest`: size of the image.
  std::uint32_t part_bytes = 0; ///< In `manifest`: size of every part but the last.
  content_hash prefix = {};     ///< In `manifest`: of the token ids whose KV it is.
  content_hash content = {};    ///< In `manifest`: of the image.
  content_hash weights = {};    ///< In `manifest`: that the image was computed with.
  friend bool operator==(const kv_frame&, const kv_frame&) = default;
};

inline constexpr std::size_t kv_frame_bytes = 100;
inline constexpr std::uint32_t kv_frame_magic = 0x32564b52; // "RKV2"

std::array<std::byte, kv_frame_bytes> encode(const kv_frame& frame) noexcept;

/// Fails with `frame_malformed` (detail: which field and its value).
result<kv_frame> decode_kv_frame(std::span<const std::byte> bytes);

} // namespace rollcast
