#pragma once

#include "cluster/policy/slot_index.hpp"
#include "engine/base/check.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace rollcast::policy {

/// Answers which worker runs least among those with room: one heap for each load, roomiest on top,
/// and a bit for each load in use. Two small arrays move with a change, where an ordered set of all
/// workers walks a path of nodes. Private to the folder.
class load_heaps {
public:
  bool empty() const noexcept { return size_ == 0; }

  /// Puts a worker in, or moves it. Cost: O(log workers), O(1) on average.
  void set(slot_t slot, worker_id id, std::uint32_t load, std::uint64_t room) {
    if (slot >= places_.size())
      places_.resize(slot + 1);
    auto& at = places_[slot];
    if (at.inside && at.load == load) {
      auto& heap = heaps_[load];
      if (heap[at.index].room == room)
        return;
      heap[at.index].room = room;
      rise(heap, fall(heap, at.index));
      return;
    }
    erase(slot);
    if (load >= heaps_.size()) {
      heaps_.resize(load + 1);
      used_.resize(load / 64 + 1);
    }
    auto& heap = heaps_[load];
    at = {load, static_cast<std::uint32_t>(heap.size()), true};
    heap.push_back({room, id, slot});
    rise(heap, at.index);
    used_[load / 64] |= std::uint64_t{1} << load % 64;
    ++size_;
  }

  /// Takes a worker out, if it is in.
  void erase(slot_t slot) {
    if (slot >= places_.size() || !places_[slot].inside)
      return;
    auto& at = places_[slot];
    auto& heap = heaps_[at.load];
    const auto index = at.index;
    at.inside = false;
    --size_;
    const auto last = heap.back();
    heap.pop_back();
    if (heap.empty())
      used_[at.load / 64] &= ~(std::uint64_t{1} << at.load % 64);
    if (index == heap.size())
      return;
    heap[index] = last;
    places_[last.slot].index = index;
    rise(heap, fall(heap, index));
  }

  /// The worker with the lowest load among those with room for `tokens`, `except` left out; ties go
  /// to the most room, then to the lowest id. Cost: O(loads in use + highest load / 64).
  std::optional<slot_t> best(std::uint64_t tokens, slot_t except) const {
    for (std::size_t word = 0; word < used_.size(); ++word)
      for (auto bits = used_[word]; bits != 0; bits &= bits - 1) {
        const auto& heap = heaps_[word * 64 + static_cast<unsigned>(__builtin_ctzll(bits))];
        const auto* top = top_but(heap, except);
        if (top != nullptr && top->room >= tokens)
          return top->slot;
      }
    return std::nullopt;
  }

private:
  struct entry {
    std::uint64_t room = 0;
    worker_id id;
    slot_t slot = no_slot;
    bool before(const entry& other) const {
      return room != other.room ? room > other.room : id < other.id;
    }
  };
  struct place {
    std::uint32_t load = 0;
    std::uint32_t index = 0;
    bool inside = false;
  };
  using heap_t = std::vector<entry>;

  static const entry* top_but(const heap_t& heap, slot_t except) {
    if (heap.front().slot != except)
      return &heap.front();
    const entry* second = heap.size() > 1 ? &heap[1] : nullptr;
    return heap.size() > 2 && heap[2].before(*second) ? &heap[2] : second;
  }

  void put(heap_t& heap, std::size_t index, const entry& e) {
    heap[index] = e;
    places_[e.slot].index = static_cast<std::uint32_t>(index);
  }

  std::size_t rise(heap_t& heap, std::size_t index) {
    const auto e = heap[index];
    for (; index > 0 && e.before(heap[(index - 1) / 2]); index = (index - 1) / 2)
      put(heap, index, heap[(index - 1) / 2]);
    put(heap, index, e);
    return index;
  }

  std::size_t fall(heap_t& heap, std::size_t index) {
    const auto e = heap[index];
    for (;;) {
      auto child = 2 * index + 1;
      if (child + 1 < heap.size() && heap[child + 1].before(heap[child]))
        ++child;
      if (child >= heap.size() || !heap[child].before(e))
        break;
      put(heap, index, heap[child]);
      index = child;
    }
    put(heap, index, e);
    return index;
  }

  std::vector<heap_t> heaps_; ///< By load.
  std::vector<std::uint64_t> used_;
  std::vector<place> places_; ///< By slot.
  std::size_t size_ = 0;
};

} // namespace rollcast::policy
