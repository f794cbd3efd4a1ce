#include "kernels/kv_copy.hpp"

#include <algorithm>
#include <cstring>

namespace rollcast::kernels {

namespace {

/// Slots [begin, end) of one group, of one kv head.
void copy_group(const kv_layout& kv, std::byte* to, const std::byte* from, std::size_t begin,
                std::size_t end) noexcept {
  const std::size_t element = size_of(kv.type);
  const std::size_t count = end - begin;
  const std::size_t row = kv.head_dim * element; // of V: one slot
  for (std::size_t d = 0; d < kv.head_dim; ++d)
    std::memcpy(to + (d * kv_group + begin) * element, from + (d * kv_group + begin) * element,
                count * element);
  if (kv.latent_dim != 0)
    return;
  std::memcpy(to + kv.tile_bytes() + begin * row, from + kv.tile_bytes() + begin * row,
              count * row);
}

} // namespace

void copy_kv_cpu(const kv_layout& kv, const kv_slots* copies, std::size_t count,
                 std::size_t head_begin, std::size_t head_end) noexcept {
  for (std::size_t head = head_begin; head < head_end; ++head)
    for (std::size_t i = 0; i < count; ++i) {
      const kv_slots& c = copies[i];
      for (std::size_t slot = c.begin; slot < c.end;) {
        const std::size_t in_group = slot % kv_group;
        const std::size_t until = std::min(kv_group, in_group + (c.end - slot));
        std::byte* to = kv.data + kv.k_offset(c.to, slot, head);
        const std::byte* from = kv.data + kv.k_offset(c.from, slot, head);
        if (in_group == 0 && until == kv_group)
          std::memcpy(to, from, kv.head_bytes());
        else
          copy_group(kv, to, from, in_group, until);
        slot += until - in_group;
      }
    }
}

} // namespace rollcast::kernels
