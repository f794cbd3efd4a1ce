#include "engine/draft/measure_steps.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace rollcast {

namespace {

constexpr int repeats = 3;

/// Rows of one sequence at consecutive positions, as a draft has them.
class measured_pass {
public:
  explicit measured_pass(backend& device) : device_(device), blocks_(device.shape().kv_blocks) {
    std::iota(blocks_.begin(), blocks_.end(), 0u);
  }

  /// Least seconds of `rows` rows from `position` on.
  double seconds(std::uint32_t rows, std::uint32_t position) {
    const std::vector<token_id> tokens(rows, 0);
    std::vector<kernels::row_place> places;
    std::vector<std::uint32_t> logit_rows(rows);
    std::iota(logit_rows.begin(), logit_rows.end(), 0u);
    for (std::uint32_t i = 0; i < rows; ++i)
      places.push_back({position + i, blocks_[(position + i) / device_.shape().block_tokens]});
    const kernels::attention_sequence sequence{blocks_.data(), 0, rows, position};
    double least = 1e9;
    for (int i = 0; i < repeats; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      device_.forward({tokens, places, {&sequence, 1}, logit_rows});
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
      least = std::min(least, spent.count());
    }
    return least;
  }

private:
  backend& device_;
  std::vector<std::uint32_t> blocks_;
};

} // namespace

step_costs measure_steps(backend& device) {
  const auto& shape = device.shape();
  const auto held = std::min<std::uint64_t>(std::uint64_t{shape.kv_blocks} * shape.block_tokens,
                                            shape.positions_max);
  const auto rows_max = static_cast<std::uint32_t>(
    std::min<std::uint64_t>({shape.logit_rows_max, shape.rows_max, held}));
  measured_pass pass{device};
  std::vector<step_cost> points;
  for (std::uint32_t rows = 1; rows < rows_max; rows = rows < 4 ? rows + 1 : rows + rows / 2)
    points.push_back({rows, pass.seconds(rows, 0)});
  points.push_back({rows_max, pass.seconds(rows_max, 0)});
  const auto far = static_cast<std::uint32_t>(std::min<std::uint64_t>(512, held - 1));
  // A draft's rows read what its response's own row reads: what each adds is measured apart.
  const auto draft = static_cast<std::uint32_t>(std::min<std::uint64_t>(8, rows_max));
  const auto reach = std::min<std::uint32_t>(far, static_cast<std::uint32_t>(held - draft));
  const auto first = (pass.seconds(1, reach) - points.front().seconds) / std::max(1u, reach);
  const auto all = (pass.seconds(draft, reach) - pass.seconds(draft, 0)) / std::max(1u, reach);
  const auto drafted = (all - first) / std::max(1u, draft - 1);
  return {std::move(points), {first, std::min(std::max(drafted, 0.0), std::max(first, 0.0))}};
}

} // namespace rollcast
