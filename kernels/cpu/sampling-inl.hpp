// The passes of sampling over a whole vocabulary. Included once per instruction set.

#if defined(ROLLCAST_SAMPLING_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef ROLLCAST_SAMPLING_INL
#undef ROLLCAST_SAMPLING_INL
#else
#define ROLLCAST_SAMPLING_INL
#endif

#include "kernels/cpu/numerics-inl.hpp"
#include "kernels/cpu/sampling_row.hpp"

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

using u32_tag = hn::RebindToUnsigned<f32_tag>;
using u32_vec = hn::Vec<u32_tag>;
using u64_tag = hn::RepartitionToWide<u32_tag>;
using u64_vec = hn::Vec<u64_tag>;
inline constexpr u32_tag u32{};
inline constexpr u64_tag u64{};

/// NaN becomes -inf.
HWY_INLINE f32_vec without_nan(f32_vec x) {
  return hn::IfThenElse(hn::Eq(x, x), x, hn::Set(f32, -std::numeric_limits<float>::infinity()));
}

/// z = logit / temperature, NaN made -inf and +inf the largest finite number.
HWY_INLINE f32_vec scaled_logit(f32_vec logit, f32_vec temperature) {
  return hn::Min(without_nan(hn::Div(logit, temperature)),
                 hn::Set(f32, std::numeric_limits<float>::max()));
}

/// Loads `count` of the lanes at `x`; the others are -inf.
HWY_INLINE f32_vec load_tail(const float* x, std::size_t count) {
  HWY_ALIGN float tail[lanes];
  hn::Store(hn::Set(f32, -std::numeric_limits<float>::infinity()), f32, tail);
  std::memcpy(tail, x, count * sizeof(float));
  return hn::Load(f32, tail);
}

/// The largest element, NaN counted as -inf.
float row_max(const float* x, std::size_t count) {
  constexpr std::size_t unroll = 4;
  f32_vec top[unroll];
  for (auto& t : top)
    t = hn::Set(f32, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + unroll * lanes <= count; i += unroll * lanes)
#pragma GCC unroll 4
    for (std::size_t j = 0; j < unroll; ++j)
      top[j] = hn::Max(top[j], without_nan(hn::LoadU(f32, x + i + j * lanes)));
  for (; i < count; i += lanes)
    top[0] = hn::Max(top[0], without_nan(load_tail(x + i, HWY_MIN(lanes, count - i))));
  return hn::GetLane(
    hn::MaxOfLanes(f32, hn::Max(hn::Max(top[0], top[1]), hn::Max(top[2], top[3]))));
}

/// Adds `fixed_weight` of every lane to two accumulators, each addition with 2^52's bits on top.
HWY_INLINE void add_fixed(f32_vec w, u64_vec& low, u64_vec& high) {
  const hn::RepartitionToWide<f32_tag> f64;
  const hn::Half<f32_tag> half;
  const auto scale = hn::Set(f64, 0x1p+40), bias = hn::Set(f64, 0x1p+52);
  const auto a = hn::PromoteTo(f64, hn::LowerHalf(half, w));
  const auto b = hn::PromoteTo(f64, hn::UpperHalf(half, w));
  low = hn::Add(low, hn::BitCast(u64, hn::MulAdd(a, scale, bias)));
  high = hn::Add(high, hn::BitCast(u64, hn::MulAdd(b, scale, bias)));
}

HWY_INLINE std::uint64_t sum_fixed(u64_vec low, u64_vec high, std::size_t added) {
  HWY_ALIGN std::uint64_t part[hn::MaxLanes(u64)];
  hn::Store(hn::Add(low, high), u64, part);
  std::uint64_t sum = 0;
  for (const std::uint64_t p : part)
    sum += p;
  return sum - added * std::bit_cast<std::uint64_t>(0x1p+52); // Modulo 2^64, as the additions were.
}

/// z = logits / temperature and w = exp(z - z_max), both written unless null and padded to whole
/// vectors with -inf and 0.
/// @returns the sum of `fixed_weight(w)`.
std::uint64_t row_weights(const float* logits, std::size_t count, float temperature, float z_max,
                          float* z, float* w) {
  auto low = hn::Zero(u64), high = hn::Zero(u64);
  const auto divisor = hn::Set(f32, temperature), top = hn::Set(f32, z_max);
  for (std::size_t i = 0; i < count; i += lanes) {
    const auto logit =
      i + lanes <= count ? hn::LoadU(f32, logits + i) : load_tail(logits + i, count - i);
    const auto zs = scaled_logit(logit, divisor);
    const auto ws = exp_f32_vec(hn::Sub(zs, top));
    add_fixed(ws, low, high);
    if (z != nullptr) {
      hn::Store(zs, f32, z + i);
      hn::Store(ws, f32, w + i);
    }
  }
  return sum_fixed(low, high, (count + lanes - 1) / lanes * lanes);
}

/// Writes the ids of tokens with z at least `bound`, ascending. @returns how many there are.
std::size_t gather_row(const float* z, std::size_t count, float bound, std::uint32_t* tokens) {
  const auto least = hn::Set(f32, bound);
  std::size_t n = 0;
  for (std::size_t i = 0; i < count; i += lanes) {
    const auto in = hn::Ge(hn::Load(f32, z + i), least);
    if (hn::AllFalse(f32, in))
      continue;
    const auto ids = hn::Iota(u32, static_cast<std::uint32_t>(i));
    n += hn::CompressStore(ids, hn::RebindMask(u32, in), u32, tokens + n);
  }
  return n;
}

/// Sets to zero the weights of tokens behind the cut or below `w_min`.
/// @returns the sum of `fixed_weight` of those that are left.
std::uint64_t keep_row(const float* z, float* w, std::size_t count, float z_cut,
                       std::uint32_t token_cut, float w_min) {
  auto low = hn::Zero(u64), high = hn::Zero(u64);
  const hn::RebindToSigned<f32_tag> i32;
  const auto cut = hn::Set(f32, z_cut), least = hn::Set(f32, w_min);
  const auto cut_id = hn::Set(i32, static_cast<std::int32_t>(token_cut));
  for (std::size_t i = 0; i < count; i += lanes) {
    const auto zs = hn::Load(f32, z + i), ws = hn::Load(f32, w + i);
    const auto late = hn::Gt(hn::Iota(i32, static_cast<std::int32_t>(i)), cut_id);
    const auto behind =
      hn::Or(hn::Lt(zs, cut), hn::And(hn::Eq(zs, cut), hn::RebindMask(f32, late)));
    const auto kept = hn::IfThenZeroElse(hn::Or(behind, hn::Lt(ws, least)), ws);
    hn::Store(kept, f32, w + i);
    add_fixed(kept, low, high);
  }
  return sum_fixed(low, high, (count + lanes - 1) / lanes * lanes);
}

/// Random words of 2 * lanes consecutive tokens, in order, from Philox counters held one to each
/// 64-bit lane, where the product of two 32-bit words needs no shuffling.
HWY_INLINE void philox_tokens(const noise_stream& stream, u64_vec counter, u32_vec& first,
                              u32_vec& second) {
  const auto m0 = hn::Set(u64, 0xd2511f53u), m1 = hn::Set(u64, 0xcd9e8d57u);
  u64_vec c0 = counter, c1 = hn::Set(u64, stream.position), c2 = hn::Zero(u64), c3 = hn::Zero(u64);
#pragma GCC unroll 10
  for (std::size_t round = 0; round < 10; ++round) {
    const auto a = hn::MulEven(hn::BitCast(u32, c0), hn::BitCast(u32, m0));
    const auto b = hn::MulEven(hn::BitCast(u32, c2), hn::BitCast(u32, m1));
    // The upper halves of the lanes hold rubbish, which no product reads.
    c0 = hn::Xor3(hn::ShiftRight<32>(b), c1, hn::Set(u64, stream.key0[round]));
    c1 = b;
    c2 = hn::Xor3(hn::ShiftRight<32>(a), c3, hn::Set(u64, stream.key1[round]));
    c3 = a;
  }
  const auto pair = [](u64_vec even, u64_vec odd) {
    return hn::OddEven(hn::BitCast(u32, hn::ShiftLeft<32>(odd)), hn::BitCast(u32, even));
  };
  const auto words01 = hn::BitCast(u64, pair(c0, c1)), words23 = hn::BitCast(u64, pair(c2, c3));
  first = hn::BitCast(u32, hn::InterleaveLower(u64, words01, words23));
  second = hn::BitCast(u32, hn::InterleaveUpper(u64, words01, words23));
}

/// The counter of each 64-bit lane, such that interleaving puts the tokens in order: even lanes
/// take the first half of the counters, odd lanes the second.
HWY_INLINE u64_vec first_counters() {
  constexpr std::size_t n = hn::MaxLanes(u64);
  HWY_ALIGN std::uint64_t counter[n];
  for (std::size_t i = 0; i < n; ++i)
    counter[i] = i / 2 + i % 2 * (n / 2);
  return hn::Load(u64, counter);
}

/// Lets every token with a weight run against `best`, the noise of the others unseen.
///
/// A token wins only if its score z + g is at least the best. With v = (bits + 1/2) * 2^-32 and
/// E = -log(1 - v) >= v, that is v <= E <= exp(z - best) = w * exp(z_max - best): one product and
/// one comparison. `bits / 256` is a lower bound of v that f32 holds exactly, and the bound gets a
/// thousandth on top, which covers the rounding of w and of the product many times.
void race_row(const float* z, const float* w, std::size_t count, float z_max,
              const noise_stream& stream, runner& best) {
  HWY_ALIGN std::uint32_t bits[2 * lanes];
  u64_vec counter = first_counters();
  const auto step = hn::Set(u64, lanes / 2);
  const hn::RebindToSigned<f32_tag> i32;
  auto bound = hn::Set(f32, best.bound(z_max));
  for (std::size_t i = 0; i < count; i += 2 * lanes) {
    u32_vec first, second;
    philox_tokens(stream, counter, first, second);
    counter = hn::Add(counter, step);
    const auto v0 = hn::ConvertTo(f32, hn::BitCast(i32, hn::ShiftRight<8>(first)));
    const auto v1 = hn::ConvertTo(f32, hn::BitCast(i32, hn::ShiftRight<8>(second)));
    const auto out0 = hn::Gt(v0, hn::Mul(hn::Load(f32, w + i), bound));
    const auto out1 = hn::Gt(v1, hn::Mul(hn::Load(f32, w + i + lanes), bound));
    if (HWY_LIKELY(hn::AllTrue(f32, hn::And(out0, out1))))
      continue;
    hn::Store(first, u32, bits);
    hn::Store(second, u32, bits + lanes);
    if (race_few(z + i, w + i, bits, i, HWY_MIN(2 * lanes, count - i), z_max, best))
      bound = hn::Set(f32, best.bound(z_max));
  }
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
