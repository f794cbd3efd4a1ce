#include "kernels/cuda/attention.hpp"

#include <algorithm>

namespace rollcast::kernels::cuda {
namespace {

/// Positions whose heads fill one tile of rows.
std::uint32_t tile_positions(std::size_t heads_per_kv) noexcept {
  return static_cast<std::uint32_t>(
    std::max<std::size_t>(1, attention_tile_rows / std::max<std::size_t>(1, heads_per_kv)));
}

std::uint32_t splits_of(std::size_t keys) noexcept {
  return static_cast<std::uint32_t>((keys + attention_split - 1) / attention_split);
}

/// Keys that an item walks: what it costs.
std::uint64_t cost(std::span<const attention_sequence> sequences,
                   const attention_item& item) noexcept {
  const std::uint64_t end =
    std::uint64_t{sequences[item.sequence].position} + item.row_begin + item.rows;
  return std::min<std::uint64_t>(item.split_end * attention_split, end)
         - item.split_begin * attention_split;
}

} // namespace

attention_plan_size attention_plan_bound(std::size_t sequences_max, std::size_t rows_max,
                                         std::size_t positions_max, std::size_t heads_per_kv,
                                         std::size_t partial_rows_max) noexcept {
  const std::size_t tiles = sequences_max + rows_max / tile_positions(heads_per_kv);
  // Every partial row has an item of its own at most.
  const std::size_t side_by_side =
    std::min(sequences_max * splits_of(positions_max), partial_rows_max);
  return {tiles + side_by_side, partial_rows_max, sequences_max};
}

attention_plan_size plan_attention(std::span<const attention_sequence> sequences,
                                   std::size_t heads_per_kv, std::size_t partial_rows_max,
                                   std::vector<attention_item>& items) {
  items.clear();
  attention_plan_size size;
  const std::uint32_t tile = tile_positions(heads_per_kv);
  for (std::uint32_t s = 0; s < sequences.size(); ++s) {
    const attention_sequence& sequence = sequences[s];
    const std::uint32_t splits = splits_of(std::size_t{sequence.position} + sequence.rows);
    const std::size_t partial = std::size_t{splits} * sequence.rows;
    if (sequence.rows <= tile && splits > 1 && size.partial_rows + partial <= partial_rows_max) {
      for (std::uint32_t i = 0; i < splits; ++i)
        items.push_back({s, 0, sequence.rows, i, i + 1, splits,
                         static_cast<std::uint32_t>(size.partial_rows),
                         static_cast<std::uint32_t>(size.groups)});
      size.partial_rows += partial;
      ++size.groups;
      continue;
    }
    for (std::uint32_t row = 0; row < sequence.rows; row += tile) {
      const std::uint32_t rows = std::min(tile, sequence.rows - row);
      const std::uint32_t own = splits_of(std::size_t{sequence.position} + row + rows);
      items.push_back({s, row, rows, 0, own, own, 0, 0});
    }
  }
  size.items = items.size();
  // Longest first, so that the last to be taken are short.
  std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
    return cost(sequences, a) > cost(sequences, b);
  });
  return size;
}

} // namespace rollcast::kernels::cuda
