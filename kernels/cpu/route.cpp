#include "kernels/route.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/route.cpp"
// foreach_target.h includes this file again for every instruction set, and so must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/numerics-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace rollcast::kernels::HWY_NAMESPACE {

/// Elements [d, d + the lanes of D) of one row.
template <class D>
HWY_INLINE void combine_part(D tag, const combine_args& args, std::size_t row, std::size_t d) {
  const std::uint32_t* places = args.places + row * args.top_k;
  const float* weights = args.weights + row * args.top_k;
  auto sum = hn::Zero(tag);
  for (std::size_t slot = 0; slot < args.top_k; ++slot)
    sum = hn::MulAdd(hn::Set(tag, weights[slot]),
                     hn::LoadU(tag, args.outputs + places[slot] * args.dim + d), sum);
  if (args.shared != nullptr)
    sum = hn::Add(sum, hn::LoadU(tag, args.shared + row * args.dim + d));
  float* y = args.y + row * args.dim + d;
  hn::StoreU(hn::Add(hn::LoadU(tag, y), sum), tag, y);
}

void combine_rows(const combine_args& args, std::size_t row_begin, std::size_t row_end) {
  const hn::CappedTag<float, 1> one;
  for (std::size_t row = row_begin; row < row_end; ++row) {
    std::size_t d = 0;
    for (; d + lanes <= args.dim; d += lanes)
      combine_part(f32, args, row, d);
    for (; d < args.dim; ++d)
      combine_part(one, args, row, d);
  }
}

} // namespace rollcast::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace rollcast::kernels {
namespace {

/// A number whose order is the order of choice: score descending, then id ascending.
std::uint64_t key_of(float score, std::uint32_t id) noexcept {
  const float plain = score + 0.0f; // -0 and +0 are one score.
  const auto bits = std::bit_cast<std::uint32_t>(plain);
  const std::uint32_t order = std::isnan(plain)           ? 0xffffffffu
                              : (bits & 0x80000000u) != 0 ? ~bits
                                                          : bits | 0x80000000u;
  return std::uint64_t{order} << 32 | (0xffffffffu - id);
}

std::uint32_t id_of(std::uint64_t key) noexcept {
  return 0xffffffffu - static_cast<std::uint32_t>(key);
}

/// The best of what was offered, best first.
class best_keys {
public:
  explicit best_keys(std::size_t most) noexcept : most_(most) {}

  void offer(std::uint64_t key) noexcept {
    if (count_ == most_ && key < keys_[count_ - 1])
      return;
    std::size_t at = count_ < most_ ? count_++ : count_ - 1;
    for (; at > 0 && keys_[at - 1] < key; --at)
      keys_[at] = keys_[at - 1];
    keys_[at] = key;
  }

  std::uint32_t id(std::size_t slot) const noexcept { return id_of(keys_[slot]); }

private:
  std::uint64_t keys_[experts_max];
  std::size_t most_;
  std::size_t count_ = 0;
};

/// Sum in the order of kernels/reduce_order.hpp.
float ordered_sum(const float* x, std::size_t count) noexcept {
  float lane[reduce_lanes] = {};
  for (std::size_t i = 0; i < count; ++i)
    lane[i % reduce_lanes] += x[i];
  for (std::size_t half = reduce_lanes / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j)
      lane[j] += lane[j + half];
  return lane[0];
}

void score_row(const route_args& args, const float* logits, float* scores) noexcept {
  if (args.score == router_score::sigmoid) {
    for (std::size_t e = 0; e < args.experts; ++e)
      scores[e] = 1.0f / (1.0f + exp_f32(-logits[e]));
    return;
  }
  float top = -std::numeric_limits<float>::infinity();
  for (std::size_t e = 0; e < args.experts; ++e)
    top = std::max(top, logits[e]);
  for (std::size_t e = 0; e < args.experts; ++e)
    scores[e] = exp_f32(logits[e] - top);
  const float sum = ordered_sum(scores, args.experts);
  for (std::size_t e = 0; e < args.experts; ++e)
    scores[e] /= sum;
}

/// Offers the experts of the best groups by their scores for the choice.
void offer_by_groups(const route_args& args, const float* choice, best_keys& best) noexcept {
  const std::size_t size = args.experts / args.groups;
  best_keys groups(args.groups_kept);
  for (std::uint32_t g = 0; g < args.groups; ++g) {
    best_keys two(2);
    for (std::size_t i = 0; i < size; ++i)
      two.offer(key_of(choice[g * size + i], static_cast<std::uint32_t>(i)));
    const float* const of_group = choice + g * size;
    groups.offer(key_of(of_group[two.id(0)] + of_group[two.id(1)], g));
  }
  for (std::size_t kept = 0; kept < args.groups_kept; ++kept)
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t e = groups.id(kept) * size + i;
      best.offer(key_of(choice[e], static_cast<std::uint32_t>(e)));
    }
}

void choose_row(const route_args& args, const float* scores, best_keys& best) noexcept {
  float biased[experts_max];
  const float* choice = scores;
  if (args.choice_bias != nullptr) {
    for (std::size_t e = 0; e < args.experts; ++e)
      biased[e] = scores[e] + args.choice_bias[e];
    choice = biased;
  }
  if (args.groups > 1)
    return offer_by_groups(args, choice, best);
  for (std::uint32_t e = 0; e < args.experts; ++e)
    best.offer(key_of(choice[e], e));
}

/// The weights of a row's slots, whose experts are chosen.
void weigh_row(const route_args& args, const float* scores, const std::uint32_t* ids,
               float* weights) noexcept {
  float sum = 0.0f;
  for (std::size_t slot = 0; slot < args.top_k; ++slot) {
    weights[slot] = scores[ids[slot]];
    sum += weights[slot];
  }
  if (args.score == router_score::sigmoid)
    sum += 1e-20f; // as the published code does: scores may all be +0
  for (std::size_t slot = 0; slot < args.top_k; ++slot)
    weights[slot] = (args.normalise ? weights[slot] / sum : weights[slot]) * args.scaling;
}

} // namespace

void route_cpu(const route_args& args, std::size_t row_begin, std::size_t row_end) noexcept {
  float scores[experts_max];
  for (std::size_t row = row_begin; row < row_end; ++row) {
    score_row(args, args.logits + row * args.stride, scores);
    best_keys best(args.top_k);
    choose_row(args, scores, best);
    std::uint32_t* ids = args.ids + row * args.top_k;
    for (std::size_t slot = 0; slot < args.top_k; ++slot)
      ids[slot] = best.id(slot);
    weigh_row(args, scores, ids, args.weights + row * args.top_k);
  }
}

HWY_EXPORT(combine_rows);

void combine_cpu(const combine_args& args, std::size_t row_begin, std::size_t row_end) noexcept {
  HWY_DYNAMIC_DISPATCH(combine_rows)(args, row_begin, row_end);
}

} // namespace rollcast::kernels
#endif
