#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace rollcast {

/// Writes the fields of a frame at fixed offsets, little-endian. `out` must have room for all.
class frame_writer {
public:
  explicit frame_writer(std::span<std::byte> out) : out_(out) {}
  template <class T>
  void operator()(T value) noexcept {
    for (std::size_t i = 0; i < sizeof(T); ++i)
      out_[at_++] = static_cast<std::byte>((static_cast<std::uint64_t>(value) >> (8 * i)) & 0xffu);
  }

private:
  std::span<std::byte> out_;
  std::size_t at_ = 0;
};

/// Reads what a `frame_writer` wrote, in the same order. `in` must hold all that is read.
class frame_reader {
public:
  explicit frame_reader(std::span<const std::byte> in) : in_(in) {}
  template <class T>
  void operator()(T& value) noexcept {
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bits |= static_cast<std::uint64_t>(in_[at_++]) << (8 * i);
    value = static_cast<T>(bits);
  }

private:
  std::span<const std::byte> in_;
  std::size_t at_ = 0;
};

/// How one kind of frame begins, and how long it is.
struct frame_format {
  std::string_view name; ///< For errors.
  std::uint32_t magic = 0;
  std::size_t bytes = 0;
  std::uint8_t kind_max = 0; ///< Kinds are 1 to this.
};

/// The part that every frame begins with, behind its magic: kind u8, error code u8, zero u16.
struct frame_head {
  std::uint8_t kind = 0;
  errc code = errc::ok;
};

inline void write_head(frame_writer& f, const frame_format& format, const frame_head& head) {
  f(format.magic);
  f(head.kind);
  f(static_cast<std::uint8_t>(head.code));
  f(std::uint16_t{0});
}

/// Reads it from the beginning of `bytes`. Fails with `frame_malformed` (detail: the size, the
/// magic or the kind, whichever is wrong first).
inline result<frame_head> read_head(frame_reader& f, std::span<const std::byte> bytes,
                                    const frame_format& format) {
  const std::string name{format.name};
  if (bytes.size() != format.bytes)
    return fail(errc::frame_malformed, name + " frame of " + std::to_string(bytes.size())
                                         + " bytes, need " + std::to_string(format.bytes));
  std::uint32_t magic = 0;
  std::uint8_t code = 0;
  std::uint16_t zero = 0;
  frame_head head;
  f(magic);
  f(head.kind);
  f(code);
  f(zero);
  head.code = static_cast<errc>(code);
  if (magic != format.magic)
    return fail(errc::frame_malformed, name + " frame with magic " + std::to_string(magic)
                                         + ": the peer is no worker, or of another version");
  if (head.kind < 1 || head.kind > format.kind_max)
    return fail(errc::frame_malformed,
                name + " frame of unknown kind " + std::to_string(head.kind));
  return head;
}

} // namespace rollcast
