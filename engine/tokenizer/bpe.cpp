#include "engine/tokenizer/bpe.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <bit>
#include <limits>

namespace rollcast {
namespace {

constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

/// Heap order: the standard heap keeps the greatest on top, so "less" is "merged later".
bool merged_later(const merge_scratch::candidate& a, const merge_scratch::candidate& b) {
  return a.value.rank != b.value.rank ? a.value.rank > b.value.rank : a.position > b.position;
}

void offer(const merge_table& merges, merge_scratch& scratch, std::size_t left, std::size_t right) {
  const auto value = merges.find(scratch.symbols[left].id, scratch.symbols[right].id);
  if (value.merged < 0)
    return;
  scratch.heap.push_back({value, left});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), merged_later);
}

} // namespace

merge_table::merge_table(std::size_t merges) : entries_(std::bit_ceil(2 * merges + 2)) {}

std::size_t merge_table::slot_of(token_id left, token_id right) const noexcept {
  const auto key = static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32
                   | static_cast<std::uint32_t>(right);
  // Fibonacci hashing; the high half of the product depends on every bit of the key.
  auto slot = static_cast<std::size_t>((key * 0x9e3779b97f4a7c15u) >> 32) & (entries_.size() - 1);
  while (entries_[slot].left >= 0 && (entries_[slot].left != left || entries_[slot].right != right))
    slot = (slot + 1) & (entries_.size() - 1);
  return slot;
}

void merge_table::insert(token_id left, token_id right, merge value) {
  entries_[slot_of(left, right)] = {left, right, value};
}

merge merge_table::find(token_id left, token_id right) const noexcept {
  return entries_[slot_of(left, right)].value;
}

void merge_bytes(std::string_view piece, const std::array<token_id, 256>& byte_tokens,
                 const merge_table& merges, merge_scratch& scratch, std::vector<token_id>& out) {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  for (std::size_t i = 0; i < piece.size(); ++i)
    symbols.push_back({byte_tokens[static_cast<unsigned char>(piece[i])], i == 0 ? none : i - 1,
                       i + 1 == piece.size() ? none : i + 1});
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
    offer(merges, scratch, i, i + 1);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), merged_later);
    const auto [value, position] = heap.back();
    heap.pop_back();
    auto& left = symbols[position];
    if (left.id < 0 || left.next == none)
      continue;
    // A candidate is stale when either side has changed since; the pair as it is now says so.
    auto& right = symbols[left.next];
    if (merges.find(left.id, right.id).merged != value.merged)
      continue;
    left.id = value.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next != none) {
      symbols[left.next].previous = position;
      offer(merges, scratch, position, left.next);
    }
    if (left.previous != none)
      offer(merges, scratch, left.previous, position);
  }
  for (const auto& symbol : symbols)
    if (symbol.id >= 0)
      out.push_back(symbol.id);
}

} // namespace rollcast
