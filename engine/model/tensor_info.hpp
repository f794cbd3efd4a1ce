#pragma once

#include "engine/base/hash.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rollcast {

/// One tensor of a checkpoint or of a weight update, by what identifies its content.
struct tensor_info {
  std::string name; ///< As in a Hugging Face checkpoint.
  kernels::dtype type = kernels::dtype::f32;
  std::vector<std::size_t> shape; ///< Row-major; matrices are [out, in].
  content_hash hash;              ///< XXH3-128 of the bytes (`hash_bytes`).
  friend bool operator==(const tensor_info&, const tensor_info&) = default;
};

/// Bytes that a tensor of this shape and type has.
std::uint64_t bytes_of(const tensor_info& tensor) noexcept;

/// Hash of an epoch's content: of name, dtype, shape and hash of every tensor, in name order.
content_hash epoch_hash_of(std::span<const tensor_info> tensors);

} // namespace rollcast
