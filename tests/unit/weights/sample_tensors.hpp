#pragma once

#include "cluster/weights/weight_cargo.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace rollcast {

/// Tensors of the given sizes in bytes (multiples of 4), named "t00", "t01", ... with random bytes.
struct sample_tensors {
  explicit sample_tensors(const std::vector<std::size_t>& sizes, std::uint64_t seed = 1) {
    prng rng{seed};
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      auto bytes = std::make_shared<std::vector<std::byte>>(sizes[i]);
      for (std::size_t at = 0; at < sizes[i]; at += 4) {
        const auto word = static_cast<std::uint32_t>(rng.next());
        std::memcpy(bytes->data() + at, &word, 4);
      }
      auto name = "t" + std::string(i < 10 ? "0" : "") + std::to_string(i);
      infos.push_back({std::move(name), kernels::dtype::f32, {sizes[i] / 4}, hash_bytes(*bytes)});
      contents.push_back({bytes, *bytes});
    }
  }

  /// A cargo that has them all.
  std::shared_ptr<weight_cargo> cargo(std::uint32_t slice_bytes) const {
    auto made = weight_cargo::of(infos, contents, slice_bytes);
    EXPECT_TRUE(made) << made.error().detail;
    return *made;
  }

  /// A cargo that waits for them.
  std::shared_ptr<weight_cargo> expected(std::uint32_t slice_bytes,
                                         const weight_cargo::filter& wanted = {}) const {
    auto made = weight_cargo::expecting(infos, slice_bytes, wanted);
    EXPECT_TRUE(made) << made.error().detail;
    return *made;
  }

  std::vector<tensor_info> infos;
  std::vector<kept_bytes> contents;
};

inline bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

/// Every tensor of `got` is that of `sent`.
inline void expect_all_equal(const weight_cargo& got, const sample_tensors& sent) {
  for (std::size_t i = 0; i < sent.infos.size(); ++i) {
    const auto bytes = got.tensor(sent.infos[i].name);
    ASSERT_TRUE(bytes) << bytes.error().detail;
    EXPECT_TRUE(same_bytes(bytes->bytes, sent.contents[i].bytes)) << sent.infos[i].name;
  }
}

} // namespace rollcast
