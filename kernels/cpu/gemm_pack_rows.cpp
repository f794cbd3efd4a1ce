#include "kernels/gemm.hpp"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_pack_rows.cpp"
// foreach_target.h includes this file again for every instruction set, so it must come before
// anything that differs between them.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/gemm_kernels.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Words of one row that are turned at a time: f32 values, or pairs of bf16.
constexpr std::size_t block_words = 64;
/// Rows of the staging area, so that rows are always turned in fours.
constexpr std::size_t staged_rows = (detail::tile_rows_max + 3) / 4 * 4;

/// Rounds to bf16 (nearest even, a NaN quiet) in the low half of each word; subnormals become zero
/// of the same sign, as vdpbf16ps takes them.
template <class D>
HWY_INLINE hn::Vec<D> round_words(D d, hn::Vec<D> bits) {
  const auto sign = hn::Set(d, 0x80000000u);
  const auto magnitude = hn::AndNot(sign, bits);
  const auto even = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
  const auto nearest = hn::Add(bits, hn::Add(even, hn::Set(d, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(d, 0x00400000u));
  const auto rounded = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 0x7f800000u)), quiet, nearest);
  const auto no_exponent = hn::Eq(hn::And(rounded, hn::Set(d, 0x7f800000u)), hn::Zero(d));
  return hn::ShiftRight<16>(hn::IfThenElse(no_exponent, hn::And(rounded, sign), rounded));
}

/// Turns `count` floats of a row into pairs of bf16, the even one in the low half; zeros fill the
/// rest of the last vector.
void round_pairs(const float* x, std::size_t count, std::uint32_t* out) {
  const hn::ScalableTag<std::uint32_t> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto* bits = reinterpret_cast<const std::uint32_t*>(x);
  HWY_ALIGN std::uint32_t tail[2 * HWY_MAX_BYTES / sizeof(std::uint32_t)] = {};
  for (std::size_t i = 0; i < count; i += 2 * lanes) {
    const std::uint32_t* from = bits + i;
    if (i + 2 * lanes > count) {
      for (std::size_t j = i; j < count; ++j)
        tail[j - i] = bits[j];
      from = tail;
    }
    const auto low = round_words(d, hn::LoadU(d, from));
    const auto high = round_words(d, hn::LoadU(d, from + lanes));
    const auto even = hn::ConcatEven(d, high, low);
    const auto odd = hn::ConcatOdd(d, high, low);
    hn::StoreU(hn::Or(even, hn::ShiftLeft<16>(odd)), d, out + i / 2);
  }
}

/// Copies `words` words of four rows, `stride` words apart, into columns [0, 4) of `out`, whose
/// rows are `rows` words long.
HWY_INLINE void turn_four(const std::uint32_t* in, std::size_t stride, std::size_t words,
                          std::uint32_t* out, std::size_t rows) {
  const hn::CappedTag<std::uint32_t, 4> d;
  const hn::Repartition<std::uint64_t, decltype(d)> d64;
  std::size_t i = 0;
  for (; i + 4 <= words; i += 4) {
    const auto a = hn::LoadU(d, in + i);
    const auto b = hn::LoadU(d, in + stride + i);
    const auto c = hn::LoadU(d, in + 2 * stride + i);
    const auto e = hn::LoadU(d, in + 3 * stride + i);
    const auto ab_low = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ce_low = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto ce_high = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    std::uint32_t* to = out + i * rows;
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_low, ce_low)), d, to);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_low, ce_low)), d, to + rows);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_high, ce_high)), d, to + 2 * rows);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_high, ce_high)), d, to + 3 * rows);
  }
  for (; i < words; ++i)
    for (std::size_t r = 0; r < 4; ++r)
      out[i * rows + r] = in[r * stride + i];
}

/// Writes `words` words of all `rows` rows of a tile, k after k. Fours of rows; what is left after
/// them is covered by a last four that overlaps.
void turn(const std::uint32_t* in, std::size_t stride, std::size_t words, std::uint32_t* out,
          std::size_t rows) {
  if (rows < 4) {
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t i = 0; i < words; ++i)
        out[i * rows + r] = in[r * stride + i];
    return;
  }
  for (std::size_t r = 0; r < rows; r += 4) {
    const std::size_t first = r + 4 <= rows ? r : rows - 4;
    turn_four(in + first * stride, stride, words, out + first, rows);
  }
}

void pack_tile_f32(const float* x, std::size_t stride, std::size_t k, std::size_t rows,
                   std::byte* tile) {
  auto* out = reinterpret_cast<std::uint32_t*>(tile);
  const auto* in = reinterpret_cast<const std::uint32_t*>(x);
  for (std::size_t i = 0; i < k; i += block_words)
    turn(in + i, stride, HWY_MIN(block_words, k - i), out + i * rows, rows);
  if (k % 2 != 0)
    for (std::size_t r = 0; r < rows; ++r)
      out[k * rows + r] = 0;
}

/// As `pack_tile_f32`, of rows that lie apart.
void pack_tile_f32_of(const float* const* x, std::size_t k, std::size_t rows, std::byte* tile) {
  HWY_ALIGN std::uint32_t staged[staged_rows * block_words];
  auto* out = reinterpret_cast<std::uint32_t*>(tile);
  for (std::size_t i = 0; i < k; i += block_words) {
    const std::size_t words = HWY_MIN(block_words, k - i);
    for (std::size_t r = 0; r < rows; ++r)
      std::memcpy(staged + r * block_words, x[r] + i, words * sizeof(float));
    turn(staged, block_words, words, out + i * rows, rows);
  }
  if (k % 2 != 0)
    for (std::size_t r = 0; r < rows; ++r)
      out[k * rows + r] = 0;
}

void pack_tile_bf16(const float* const* x, std::size_t k, std::size_t rows, std::byte* tile) {
  HWY_ALIGN std::uint32_t staged[staged_rows * block_words];
  auto* out = reinterpret_cast<std::uint32_t*>(tile);
  for (std::size_t i = 0; i < k; i += 2 * block_words) {
    const std::size_t count = HWY_MIN(2 * block_words, k - i);
    for (std::size_t r = 0; r < rows; ++r)
      round_pairs(x[r] + i, count, staged + r * block_words);
    turn(staged, block_words, detail::pair_count(count), out + i / 2 * rows, rows);
  }
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rollcast::kernels {

HWY_EXPORT(pack_tile_f32);
HWY_EXPORT(pack_tile_f32_of);
HWY_EXPORT(pack_tile_bf16);

std::size_t packed_rows_bytes(arithmetic how, std::size_t rows, std::size_t k) noexcept {
  return (rows * detail::pair_count(k) * detail::row_pair_bytes(how) + 63) / 64 * 64;
}

std::size_t row_tile_count(arithmetic, std::size_t rows) noexcept {
  return detail::tile_count(rows);
}

namespace {

/// Where one tile's rows go.
struct tile_place {
  std::size_t first; ///< Row.
  std::size_t rows;
  std::byte* to;
};

tile_place place_of(const packed_rows& out, std::size_t tile) noexcept {
  const std::size_t row_bytes = detail::pair_count(out.k) * detail::row_pair_bytes(out.how);
  const std::size_t first = detail::tile_begin(out.rows, tile);
  return {first, detail::tile_begin(out.rows, tile + 1) - first, out.data + first * row_bytes};
}

} // namespace

void pack_rows(const float* x, std::size_t x_stride, const packed_rows& out, std::size_t tile_begin,
               std::size_t tile_end) noexcept {
  const float* rows[detail::tile_rows_max];
  for (std::size_t tile = tile_begin; tile < tile_end; ++tile) {
    const auto place = place_of(out, tile);
    const float* from = x + place.first * x_stride;
    if (out.how == arithmetic::f32) {
      HWY_DYNAMIC_DISPATCH(pack_tile_f32)(from, x_stride, out.k, place.rows, place.to);
      continue;
    }
    for (std::size_t r = 0; r < place.rows; ++r)
      rows[r] = from + r * x_stride;
    HWY_DYNAMIC_DISPATCH(pack_tile_bf16)(rows, out.k, place.rows, place.to);
  }
}

void pack_rows_of(const float* x, std::size_t x_stride, const std::uint32_t* rows,
                  const packed_rows& out, std::size_t tile_begin, std::size_t tile_end) noexcept {
  const float* from[detail::tile_rows_max];
  for (std::size_t tile = tile_begin; tile < tile_end; ++tile) {
    const auto place = place_of(out, tile);
    for (std::size_t r = 0; r < place.rows; ++r)
      from[r] = x + rows[place.first + r] * x_stride;
    if (out.how == arithmetic::f32)
      HWY_DYNAMIC_DISPATCH(pack_tile_f32_of)(from, out.k, place.rows, place.to);
    else
      HWY_DYNAMIC_DISPATCH(pack_tile_bf16)(from, out.k, place.rows, place.to);
  }
}

} // namespace rollcast::kernels
#endif // HWY_ONCE
