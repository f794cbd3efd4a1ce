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
  bool normalise;     ///< Divide a row's weights by their sum.
  std::uint32_t* ids; ///< [rows, top_k], best first: the row's slots.
  float* weights;     ///< [rows, top_k].
};

/// Routes rows [row_begin, row_end).
/// Numerics: f32. softmax: with m the row's maximum, s_e = exp_f32(l_e - m) / sum, the sum in the
///           order of kernels/reduce_order.hpp. sigmoid: s_e = 1 / (1 + exp_f32(-l_e)). The best
///           `top_k` experts are chosen by s in a total order: score descending, then id ascending;
///           a NaN counts as the best. A slot's weight is its s; with `normalise` it is divided by
///           their sum, taken slot after slot. A row is a function of its logits alone.
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
};

/// y[r] = y[r] + sum over slots of weights[r, s] * outputs[places[r, s]], for rows [row_begin,
/// row_end).
/// Numerics: one chain of f32 FMAs over the slots, ascending from +0; then one addition. So a row
///           depends on its own slots alone, whichever experts others chose.
/// Cost:     reads top_k rows and one, writes one.
void combine_cpu(const combine_args& args, std::size_t row_begin, std::size_t row_end) noexcept;

} // namespace rollcast::kernels
