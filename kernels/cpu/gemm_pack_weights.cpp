#include "kernels/cpu/gemm_kernels.hpp"
#include "kernels/gemm.hpp"

#include <algorithm>
#include <cstring>

namespace rollcast::kernels {
namespace {

using detail::pair_count;

/// Pairs of k that are copied for all columns before the next: a cache line of bf16, so
/// that each line of the source and of the destination is touched once while it is in L1.
constexpr std::size_t block_pairs = 16;

struct source_row {
  const std::byte* data;
  dtype type;

  std::uint16_t half(std::size_t i) const {
    std::uint16_t bits;
    std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
    return bits;
  }
  float value(std::size_t i) const {
    if (type == dtype::bf16)
      return widen_bf16(half(i));
    if (type == dtype::f16)
      return widen_f16(half(i));
    float x;
    std::memcpy(&x, data + i * sizeof x, sizeof x);
    return x;
  }
  std::uint32_t bf16(std::size_t i) const {
    return type == dtype::bf16 ? half(i) : round_bf16(value(i));
  }
};

/// Copies pairs [begin, end) of one checkpoint row into its column of a panel.
void pack_column(const source_row& row, std::size_t k, std::size_t begin, std::size_t end,
                 std::size_t column, std::byte* panel, dtype out_type) {
  if (out_type == dtype::f32) {
    auto* out = reinterpret_cast<float*>(panel) + column;
    for (std::size_t i = 2 * begin; i < std::min(2 * end, k); ++i)
      out[i * panel_columns] = row.value(i);
    return;
  }
  auto* out = reinterpret_cast<std::uint32_t*>(panel) + column;
  for (std::size_t pair = begin; pair < end; ++pair) {
    const std::uint32_t odd = 2 * pair + 1 < k ? row.bf16(2 * pair + 1) : 0;
    out[pair * panel_columns] = row.bf16(2 * pair) | odd << 16;
  }
}

} // namespace

std::size_t packed_bytes(dtype type, std::size_t n, std::size_t k) noexcept {
  return panel_count(n) * pair_count(k) * detail::panel_pair_bytes(type);
}

void pack_weights(const void* source, dtype source_type, std::size_t rows, std::size_t k,
                  std::size_t column, std::byte* out, dtype out_type, std::size_t n) noexcept {
  (void)n; // the panels do not depend on it; it is there so that a call names the whole matrix
  const std::size_t pairs = pair_count(k);
  const std::size_t panel_bytes = pairs * detail::panel_pair_bytes(out_type);
  for (std::size_t row = 0; row < rows;) {
    const std::size_t first = column + row;
    const std::size_t in_panel = first % panel_columns;
    const std::size_t count = std::min(panel_columns - in_panel, rows - row);
    std::byte* panel = out + first / panel_columns * panel_bytes;
    for (std::size_t pair = 0; pair < pairs; pair += block_pairs)
      for (std::size_t i = 0; i < count; ++i) {
        const auto* data =
          static_cast<const std::byte*>(source) + (row + i) * k * size_of(source_type);
        pack_column({data, source_type}, k, pair, std::min(pair + block_pairs, pairs), in_panel + i,
                    panel, out_type);
      }
    row += count;
  }
}

} // namespace rollcast::kernels
