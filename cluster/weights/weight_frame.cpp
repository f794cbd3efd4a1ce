#include "cluster/weights/weight_frame.hpp"

#include "cluster/transport/frame_bytes.hpp"

#include <string>

namespace rollcast {
namespace {

/// Walks the bytes of a frame field by field, in one order for both directions.
template <class Walker, class Frame>
void walk(Walker& f, Frame& x) noexcept {
  f(x.update);
  f(x.attempt);
  f(x.slice);
  f(x.slice_bytes);
  f(x.manifest.high);
  f(x.manifest.low);
}

} // namespace

std::array<std::byte, weight_frame_bytes> encode(const weight_frame& frame) noexcept {
  std::array<std::byte, weight_frame_bytes> bytes{};
  frame_writer f{bytes};
  f(weight_frame_magic);
  f(static_cast<std::uint8_t>(frame.kind));
  f(static_cast<std::uint8_t>(frame.code));
  f(std::uint16_t{0});
  walk(f, frame);
  return bytes;
}

result<weight_frame> decode_weight_frame(std::span<const std::byte> bytes) {
  if (bytes.size() != weight_frame_bytes)
    return fail(errc::frame_malformed, "weight frame of " + std::to_string(bytes.size())
                                         + " bytes, need " + std::to_string(weight_frame_bytes));
  frame_reader f{bytes};
  std::uint32_t magic = 0;
  std::uint8_t kind = 0;
  std::uint8_t code = 0;
  std::uint16_t zero = 0;
  f(magic);
  f(kind);
  f(code);
  f(zero);
  if (magic != weight_frame_magic)
    return fail(errc::frame_malformed, "weight frame with magic " + std::to_string(magic)
                                         + ": the peer is no worker, or of another version");
  if (kind < static_cast<std::uint8_t>(weight_message::want)
      || kind > static_cast<std::uint8_t>(weight_message::refused))
    return fail(errc::frame_malformed, "weight frame of unknown kind " + std::to_string(kind));
  weight_frame frame;
  frame.kind = static_cast<weight_message>(kind);
  frame.code = static_cast<errc>(code);
  walk(f, frame);
  return frame;
}

} // namespace rollcast
