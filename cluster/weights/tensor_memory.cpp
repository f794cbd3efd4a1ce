#include "cluster/weights/tensor_memory.hpp"

#include "engine/base/aligned_buffer.hpp"

#include <map>
#include <mutex>
#include <optional>
#include <utility>

namespace rollcast {

/// What nobody uses now, by size.
struct tensor_memory::shelf {
  explicit shelf(std::uint64_t most) : kept_bytes_max(most) {}

  /// Takes a buffer back, or lets it go at the end of this call.
  void put(aligned_buffer buffer) {
    const std::scoped_lock lock{mutex};
    if (buffer.size() > kept_bytes_max - kept_bytes)
      return;
    kept_bytes += buffer.size();
    buffers.emplace(buffer.size(), std::move(buffer));
  }

  std::optional<aligned_buffer> take(std::uint64_t bytes) {
    const std::scoped_lock lock{mutex};
    auto node = buffers.extract(bytes);
    if (node.empty())
      return std::nullopt;
    kept_bytes -= bytes;
    return std::move(node.mapped());
  }

  const std::uint64_t kept_bytes_max;
  std::mutex mutex;
  std::uint64_t kept_bytes = 0;
  std::multimap<std::uint64_t, aligned_buffer> buffers;
};

tensor_memory::tensor_memory(std::uint64_t kept_bytes_max)
  : shelf_(std::make_shared<shelf>(kept_bytes_max)) {}

result<std::shared_ptr<std::byte>> tensor_memory::make(std::uint64_t bytes) {
  // A mapping of its own costs up to 2 MiB of address space, which norms and biases do not need.
  if (bytes < (1u << 20)) {
    auto small = std::shared_ptr<std::byte[]>(new std::byte[bytes]);
    return std::shared_ptr<std::byte>(small, small.get());
  }
  auto buffer = shelf_->take(bytes);
  if (!buffer) {
    auto fresh = aligned_buffer::make(bytes);
    if (!fresh)
      return fail(fresh);
    buffer = std::move(*fresh);
  }
  const auto data = buffer->data();
  const std::shared_ptr<aligned_buffer> owner{new aligned_buffer{std::move(*buffer)},
                                              [shelf = shelf_](aligned_buffer* b) {
                                                shelf->put(std::move(*b));
                                                delete b;
                                              }};
  return std::shared_ptr<std::byte>(owner, data);
}

std::uint64_t tensor_memory::kept_bytes() const {
  const std::scoped_lock lock{shelf_->mutex};
  return shelf_->kept_bytes;
}

void tensor_memory::release() {
  const std::scoped_lock lock{shelf_->mutex};
  shelf_->buffers.clear();
  shelf_->kept_bytes = 0;
}

} // namespace rollcast
