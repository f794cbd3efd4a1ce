#pragma once

#include "engine/base/check.hpp"
#include "engine/base/ids.hpp"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace rollcast::policy {

using slot_t = std::uint32_t;
inline constexpr slot_t no_slot = 0xffff'ffffu;

/// Spreads numbers that come in a row over table and tags.
struct id_hash {
  std::size_t operator()(std::uint64_t id) const noexcept {
    const auto product = static_cast<unsigned __int128>(id) * 0x9e3779b97f4a7c15u;
    return static_cast<std::size_t>(product ^ (product >> 64));
  }
  template <class Tag>
  std::size_t operator()(strong_id<Tag> id) const noexcept {
    return (*this)(id.value);
  }
};

/// Finds slots by id. Ids are handed out in order, so the slots of ids in a row share a page: four
/// bytes an id, where a hash table takes twenty and misses the cache twice. A lone id costs a page
/// (half a KiB). Never walked: the order of the pages is not the same everywhere. O(1) each.
template <class Id>
class slot_index {
public:
  std::size_t size() const noexcept { return size_; }

  /// Returns the slot of `id`, `no_slot` without one.
  slot_t find(Id id) const {
    const auto it = pages_.find(id.value / page_ids);
    return it == pages_.end() ? no_slot : it->second->slots[id.value % page_ids];
  }

  /// @pre `id` has no slot, and `slot` is one
  void insert(Id id, slot_t slot) {
    auto& at = pages_[id.value / page_ids];
    if (!at)
      at = std::make_unique<page>();
    ROLLCAST_CHECK(at->slots[id.value % page_ids] == no_slot && slot != no_slot);
    at->slots[id.value % page_ids] = slot;
    ++at->used;
    ++size_;
  }

  /// @pre `id` has a slot
  void erase(Id id) {
    const auto it = pages_.find(id.value / page_ids);
    ROLLCAST_CHECK(it != pages_.end() && it->second->slots[id.value % page_ids] != no_slot);
    it->second->slots[id.value % page_ids] = no_slot;
    --size_;
    if (--it->second->used == 0)
      pages_.erase(it);
  }

private:
  static constexpr std::uint64_t page_ids = 128;
  struct page {
    page() { std::fill(slots.begin(), slots.end(), no_slot); }
    std::array<slot_t, page_ids> slots;
    std::uint32_t used = 0;
  };

  absl::flat_hash_map<std::uint64_t, std::unique_ptr<page>, id_hash> pages_;
  std::size_t size_ = 0;
};

} // namespace rollcast::policy
