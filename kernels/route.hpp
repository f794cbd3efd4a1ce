#pragma once

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// How a router turns its logits into the scores of experts.
enum class router_score : std::uint8_t { softmax, sigmoid };

/// Experts of one layer at most.
inline constexpr std::size_t experts_max = 1024;

/// Chooses the experts of each row and weighs them.
struct route_args {
  const float* logits; ///< [rows, experts].
  std::size_t stride;  ///< Elements of a row of logits.
  std::size_t experts; ///< 1 to `experts_max`.
  std::size_t top_k;   ///< 1 to `experts`.
  router_score score;
  bool normalise;                     ///< Divide a row's weights by their sum.
  std::uint32_t* ids;                 ///< [rows, top_k], best first: the row's slots.
  float* weights;                     ///< [rows, top_k].
  const float* choice_bias = nullptr; ///< [experts] or null: added for the choice alone.
  std::size_t groups = 1;             ///< Experts lie in so many equal groups of at least two,
  std::size_t groups_kept = 1;        ///< and are chosen from the best so many of them.
  float scaling = 1.0f;               ///< Weights are multiplied by it at the end.
};

/// Routes rows [row_begin, row_end).
/// Numerics: f32. softmax: with m the row's maximum, s_e = exp_f32(l_e - m) / sum, the sum in the
///           order of kernels/reduce_order.hpp. sigmoid: s_e = 1 / (1 + exp_f32(-l_e)). Experts are
///           chosen by c_e = s_e + choice_bias_e. With more than one group, a group's score is the
///           sum of its two best c, and only experts of the best `groups_kept` groups are looked
///           at. The best `top_k` are taken in a total order, as are groups: score descending, then
///           id ascending; a NaN counts as the best. A slot's weight is its s; with `normalise` it
///           is divided by their sum, taken slot after slot (softmax), or by that sum + 1e-20
///           (sigmoid); then multiplied by `scaling`. A row is a function of its logits alone.
/// Cost:     one exp an expert, and a short insertion for those that may be chosen.
void route_cpu(const route_args& args, std::size_t row_begin, std::size_t row_end) noexcept;

/// Adds what a row's experts made of it to the residual stream.
struct combine_args {
  const float* outputs;        ///< [places, dim], the experts' rows.
  const std::uint32_t* places; ///< [rows, top_k]: where each slot's row is in `outputs`.
  const float* weights;        ///< [rows, top_k].
  std::size_t top_k;
  float* y; ///< [rows, dim].
  std::size_t dim;
  const float* shared = nullptr; ///< [rows, dim] or null: what the shared experts made of each row.
};

/// y[r] += sum over slots of weights[r, s] * outputs[places[r, s]] (+ shared[r]), for rows
/// [row_begin, row_end).
/// Numerics: one chain of f32 FMAs over the slots, ascending from +0; then the addition of
///           `shared`, if any, and that to y. So a row depends on its own slots alone, whichever
///           experts others chose.
/// Cost:     reads top_k rows and one, writes one.
void combine_cpu(const combine_args& args, std::size_t row_begin, std::size_t row_end) noexcept;

} // namespace rollcast::kernels
