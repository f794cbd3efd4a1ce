#include "cluster/transport/kv_frame.hpp"

#include "cluster/transport/frame_bytes.hpp"

#include <string>
#include <type_traits>

namespace rollcast {
namespace {

/// Walks the bytes of a frame field by field, in one order for both directions.
template <class Walker, class Frame>
void walk(Walker& f, Frame& x) noexcept {
  f(x.pull);
  f(x.holder.value);
  f(x.response.value);
  f(x.tokens);
  f(x.part);
  f(x.bytes);
  f(x.part_bytes);
  f(x.prefix.high);
  f(x.prefix.low);
  f(x.content.high);
  f(x.content.low);
  f(x.weights.high);
  f(x.weights.low);
}

} // namespace

std::array<std::byte, kv_frame_bytes> encode(const kv_frame& frame) noexcept {
  std::array<std::byte, kv_frame_bytes> bytes{};
  frame_writer f{bytes};
  f(kv_frame_magic);
  f(static_cast<std::uint8_t>(frame.kind));
  f(static_cast<std::uint8_t>(frame.code));
  f(std::uint16_t{0});
  walk(f, frame);
  return bytes;
}

result<kv_frame> decode_kv_frame(std::span<const std::byte> bytes) {
  if (bytes.size() != kv_frame_bytes)
    return fail(errc::frame_malformed, "KV frame of " + std::to_string(bytes.size())
                                         + " bytes, need " + std::to_string(kv_frame_bytes));
  frame_reader f{bytes};
  std::uint32_t magic = 0;
  std::uint8_t kind = 0;
  std::uint8_t code = 0;
  std::uint16_t zero = 0;
  f(magic);
  f(kind);
  f(code);
  f(zero);
  if (magic != kv_frame_magic)
    return fail(errc::frame_malformed, "KV frame with magic " + std::to_string(magic)
                                         + ": the peer is no worker, or of another version");
  if (kind < static_cast<std::uint8_t>(kv_message::open)
      || kind > static_cast<std::uint8_t>(kv_message::wait))
    return fail(errc::frame_malformed, "KV frame of unknown kind " + std::to_string(kind));
  kv_frame frame;
  frame.kind = static_cast<kv_message>(kind);
  frame.code = static_cast<errc>(code);
  walk(f, frame);
  return frame;
}

} // namespace rollcast
