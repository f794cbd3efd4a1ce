#include "cluster/weights/weight_frame.hpp"

#include "cluster/transport/frame_bytes.hpp"

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

constexpr frame_format format{"weight", weight_frame_magic, weight_frame_bytes,
                              static_cast<std::uint8_t>(weight_message::refused)};

} // namespace

std::array<std::byte, weight_frame_bytes> encode(const weight_frame& frame) noexcept {
  std::array<std::byte, weight_frame_bytes> bytes{};
  frame_writer f{bytes};
  write_head(f, format, {static_cast<std::uint8_t>(frame.kind), frame.code});
  walk(f, frame);
  return bytes;
}

result<weight_frame> decode_weight_frame(std::span<const std::byte> bytes) {
  frame_reader f{bytes};
  const auto head = read_head(f, bytes, format);
  if (!head)
    return fail(head);
  weight_frame frame;
  frame.kind = static_cast<weight_message>(head->kind);
  frame.code = head->code;
  walk(f, frame);
  return frame;
}

} // namespace rollcast
