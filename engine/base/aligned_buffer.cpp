#include "engine/base/aligned_buffer.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <string>

namespace rollcast {

namespace {
constexpr std::size_t alignment = std::size_t{2} << 20;
}

result<aligned_buffer> aligned_buffer::make(std::size_t bytes) {
  aligned_buffer buffer;
  if (bytes == 0)
    return buffer;
  const std::size_t mapped = (bytes + alignment - 1) / alignment * alignment + alignment;
  void* mapping = MAP_FAILED;
  if (mapped > bytes)
    mapping = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED)
    return fail(errc::queue_full,
                "cannot reserve " + std::to_string(bytes)
                  + " bytes of memory: ask for fewer KV blocks or a smaller model");
  buffer.mapping_ = mapping;
  buffer.mapped_ = mapped;
  buffer.size_ = bytes;
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  buffer.data_ = reinterpret_cast<std::byte*>((address + alignment - 1) / alignment * alignment);
  ::madvise(buffer.data_, mapped - alignment, MADV_HUGEPAGE); // best effort: speed only
  ::madvise(buffer.data_, mapped - alignment, MADV_DONTDUMP);
  return buffer;
}

aligned_buffer::~aligned_buffer() {
  if (mapping_ != nullptr)
    ::munmap(mapping_, mapped_);
}

} // namespace rollcast
