#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace rollcast {

// CAF copies a byte string at 2 GB/s but walks a vector of numbers at a tenth of that, so arrays
// ride as the bytes they have in memory. Both ends must agree on what that is.
static_assert(std::endian::native == std::endian::little);

/// The bytes of a contiguous range of numbers, as a string that CAF sends in one piece.
template <class T>
std::string to_bytes(std::span<const T> xs) {
  static_assert(std::is_arithmetic_v<T> || std::is_same_v<T, std::byte>);
  return {reinterpret_cast<const char*>(xs.data()), xs.size_bytes()};
}

/// The numbers back, bit for bit. A tail that is no whole number is dropped; callers compare
/// counts.
template <class T>
std::vector<T> from_bytes(const std::string& bytes) {
  static_assert(std::is_arithmetic_v<T>);
  std::vector<T> xs(bytes.size() / sizeof(T));
  if (!xs.empty())
    std::memcpy(xs.data(), bytes.data(), xs.size() * sizeof(T));
  return xs;
}

} // namespace rollcast
