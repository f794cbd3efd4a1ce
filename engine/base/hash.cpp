#include "engine/base/hash.hpp"

#include "engine/base/check.hpp"

#include <xxhash.h>

#include <array>
#include <cstdio>

namespace rollcast {

content_hash hash_bytes(std::span<const std::byte> bytes, std::uint64_t seed) noexcept {
  const XXH128_hash_t h = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {h.high64, h.low64};
}

void running_hash::free_state::operator()(XXH3_state_s* state) const noexcept {
  XXH3_freeState(state);
}

running_hash::running_hash() : state_(XXH3_createState()) {
  ROLLCAST_CHECK(state_ != nullptr); // half a kilobyte
  restart();
}

void running_hash::restart() noexcept {
  XXH3_128bits_reset(state_.get());
}

void running_hash::update(std::span<const std::byte> bytes) noexcept {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

content_hash running_hash::digest() const noexcept {
  const XXH128_hash_t h = XXH3_128bits_digest(state_.get());
  return {h.high64, h.low64};
}

std::string to_string(const content_hash& hash) {
  std::array<char, 33> text{};
  std::snprintf(text.data(), text.size(), "%016llx%016llx",
                static_cast<unsigned long long>(hash.high),
                static_cast<unsigned long long>(hash.low));
  return text.data();
}

std::uint64_t response_seed(std::uint64_t batch_seed, std::uint64_t group,
                            std::uint64_t index) noexcept {
  // Little-endian bytes spelled out, so that the seed is the same on every machine.
  std::array<unsigned char, 24> key{};
  const std::array words{batch_seed, group, index};
  for (std::size_t w = 0; w < words.size(); ++w)
    for (std::size_t b = 0; b < 8; ++b)
      key[w * 8 + b] = static_cast<unsigned char>(words[w] >> (8 * b));
  return XXH64(key.data(), key.size(), 0);
}

} // namespace rollcast
