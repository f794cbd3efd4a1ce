#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s; // of xxHash

namespace rollcast {

/// XXH3-128 of a byte string: what weights, KV images and golden files are compared by. Not
/// cryptographic. Source: xxHash 0.8, https://xxhash.com.
struct content_hash {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  friend bool operator==(const content_hash&, const content_hash&) = default;

  template <class Inspector>
  friend typename Inspector::result_type inspect(Inspector& f, content_hash& x) {
    return f(x.high, x.low);
  }
};

/// Hashes `bytes`; `seed` starts a different family (chained hashes pass the previous `low`).
content_hash hash_bytes(std::span<const std::byte> bytes, std::uint64_t seed = 0) noexcept;

/// Hashes the bytes of a contiguous range of trivially copyable elements.
template <class T>
content_hash hash_of(std::span<T> xs, std::uint64_t seed = 0) noexcept {
  return hash_bytes(std::as_bytes(xs), seed);
}

/// Hashes bytes that come piece by piece: `digest` equals `hash_bytes` of all of them together.
class running_hash {
public:
  running_hash();
  void update(std::span<const std::byte> bytes) noexcept;
  content_hash digest() const noexcept;
  void restart() noexcept;

private:
  struct free_state {
    void operator()(XXH3_state_s* state) const noexcept;
  };
  std::unique_ptr<XXH3_state_s, free_state> state_;
};

/// Returns 32 lower-case hexadecimal digits, high half first.
std::string to_string(const content_hash& hash);

/// Derives the 64-bit seed of one response: XXH64 of (batch seed, group, index), so that members of
/// a group differ and a response keeps its seed wherever and whenever it runs.
std::uint64_t response_seed(std::uint64_t batch_seed, std::uint64_t group,
                            std::uint64_t index) noexcept;

} // namespace rollcast
