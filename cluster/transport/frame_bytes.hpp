#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

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

} // namespace rollcast
