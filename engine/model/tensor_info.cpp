#include "engine/model/tensor_info.hpp"

#include "engine/model/tensor_text.hpp"

#include <algorithm>
#include <limits>

namespace rollcast {

std::string shown(std::span<const std::size_t> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

std::string_view name_of(kernels::dtype type) noexcept {
  switch (type) {
    case kernels::dtype::f32: return "F32";
    case kernels::dtype::bf16: return "BF16";
    case kernels::dtype::f16: return "F16";
  }
  return "?";
}

std::uint64_t bytes_of(const tensor_info& tensor) noexcept {
  // A shape may come from a peer: what no memory can hold must not wrap around to something small.
  std::uint64_t bytes = kernels::size_of(tensor.type);
  bool fits = true;
  for (const std::size_t extent : tensor.shape) {
    if (extent == 0)
      return 0;
    fits = !__builtin_mul_overflow(bytes, extent, &bytes) && fits;
  }
  return fits ? bytes : std::numeric_limits<std::uint64_t>::max();
}

content_hash epoch_hash_of(std::span<const tensor_info> tensors) {
  std::vector<const tensor_info*> ordered;
  for (const auto& tensor : tensors)
    ordered.push_back(&tensor);
  std::sort(ordered.begin(), ordered.end(),
            [](const auto* a, const auto* b) { return a->name < b->name; });
  std::string manifest;
  for (const auto* tensor : ordered)
    manifest += tensor->name + " " + std::string(name_of(tensor->type)) + " " + shown(tensor->shape)
                + " " + to_string(tensor->hash) + "\n";
  return hash_of(std::span<const char>(manifest));
}

} // namespace rollcast
