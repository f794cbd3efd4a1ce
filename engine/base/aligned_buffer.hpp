#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <utility>

namespace rollcast {

/// Zero-filled memory straight from the system, aligned to 2 MiB and backed by huge pages where the
/// kernel gives them (4 KiB pages cost about a fifth of the read bandwidth). A core file leaves it
/// out: weights and KV are as large as the machine's memory. Moves, never copies.
class aligned_buffer {
public:
  aligned_buffer() = default;
  /// Fails with `queue_full` and the size when the system refuses so much address space.
  static result<aligned_buffer> make(std::size_t bytes);
  ~aligned_buffer();
  aligned_buffer(aligned_buffer&& other) noexcept { swap(other); }
  aligned_buffer& operator=(aligned_buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

  template <class T>
  T* as() const noexcept {
    return reinterpret_cast<T*>(data_);
  }

private:
  void swap(aligned_buffer& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

} // namespace rollcast
