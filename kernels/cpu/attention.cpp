#include "kernels/attention.hpp"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/attention-inl.hpp"
// clang-format on

#if HWY_ONCE
namespace rollcast::kernels {
namespace {

/// Query positions of one item: enough to use each K and V tile many times, few enough to share.
constexpr std::uint32_t item_rows = 32;

/// Keys that an item visits, summed over its rows.
std::uint64_t cost(const attention_sequence* sequences, const attention_item& item) noexcept {
  const std::uint64_t first = sequences[item.sequence].position + item.row_begin;
  return item.rows * (2 * first + item.rows + 1);
}

} // namespace

std::size_t attention_items_max(std::size_t sequences, std::size_t rows,
                                std::size_t kv_heads) noexcept {
  return kv_heads * (sequences + rows / item_rows);
}

std::size_t plan_attention(const attention_sequence* sequences, std::size_t count,
                           std::size_t kv_heads, attention_item* items) noexcept {
  std::size_t n = 0;
  for (std::uint32_t s = 0; s < count; ++s)
    for (std::uint32_t row = 0; row < sequences[s].rows; row += item_rows)
      for (std::uint32_t head = 0; head < kv_heads; ++head)
        items[n++] = {s, head, row, std::min(item_rows, sequences[s].rows - row)};
  // Longest first, so that the last items to be taken by a thread are short ones.
  std::sort(items, items + n, [&](const attention_item& a, const attention_item& b) {
    const std::uint64_t cost_a = cost(sequences, a), cost_b = cost(sequences, b);
    if (cost_a != cost_b)
      return cost_a > cost_b;
    if (a.sequence != b.sequence)
      return a.sequence < b.sequence;
    return a.row_begin != b.row_begin ? a.row_begin < b.row_begin : a.kv_head < b.kv_head;
  });
  return n;
}

HWY_EXPORT(attention_item_rows);

void attention_cpu(const attention_args& args, const attention_item& item) noexcept {
  HWY_DYNAMIC_DISPATCH(attention_item_rows)(args, item);
}

} // namespace rollcast::kernels
#endif
