#include "cluster/transport/kv_frame.hpp"

#include "cluster/transport/frame_bytes.hpp"

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

constexpr frame_format format{"KV", kv_frame_magic, kv_frame_bytes,
                              static_cast<std::uint8_t>(kv_message::carry)};

} // namespace

std::array<std::byte, kv_frame_bytes> encode(const kv_frame& frame) noexcept {
  std::array<std::byte, kv_frame_bytes> bytes{};
  frame_writer f{bytes};
  write_head(f, format, {static_cast<std::uint8_t>(frame.kind), frame.code});
  walk(f, frame);
  return bytes;
}

result<kv_frame> decode_kv_frame(std::span<const std::byte> bytes) {
  frame_reader f{bytes};
  const auto head = read_head(f, bytes, format);
  if (!head)
    return fail(head);
  kv_frame frame;
  frame.kind = static_cast<kv_message>(head->kind);
  frame.code = head->code;
  walk(f, frame);
  return frame;
}

} // namespace rollcast
