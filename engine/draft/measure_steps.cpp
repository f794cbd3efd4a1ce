#include "engine/draft/measure_steps.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

namespace rollcast {

namespace {

/// Rounds over all that is measured, the first not counted: a machine that is slow for a while is
/// so for all points alike.
constexpr int rounds = 6;

/// Rows of one sequence at consecutive positions, as a draft has them.
class measured_pass {
public:
  measured_pass(backend& device, std::uint32_t rows, std::uint32_t position, std::size_t taken)
    : device_(device), tokens_(rows, 0), logit_rows_(rows), blocks_(device.shape().kv_blocks),
      how_(rows), sampled_(rows), taken_(rows * taken), rows_(rows), position_(position) {
    std::iota(blocks_.begin(), blocks_.end(), 0u);
    std::iota(logit_rows_.begin(), logit_rows_.end(), 0u);
    for (std::uint32_t i = 0; i < rows; ++i)
      places_.push_back({position + i, blocks_[(position + i) / device.shape().block_tokens]});
  }

  void run(bool counts) {
    const kernels::attention_sequence sequence{blocks_.data(), 0, rows_, position_};
    const auto begin = std::chrono::steady_clock::now();
    forward_rows pass{tokens_, places_, {&sequence, 1}, logit_rows_};
    pass.taken = taken_;
    device_.forward(pass);
    device_.sample(how_, sampled_);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    if (counts)
      least_ = std::min(least_, spent.count());
  }

  std::uint32_t rows() const noexcept { return rows_; }
  /// Least of the rounds: whatever else runs on the machine only ever adds.
  double seconds() const noexcept { return least_; }

private:
  backend& device_;
  std::vector<token_id> tokens_;
  std::vector<std::uint32_t> logit_rows_;
  std::vector<std::uint32_t> blocks_;
  std::vector<kernels::row_place> places_;
  std::vector<kernels::sample_params> how_;
  std::vector<kernels::sampled_token> sampled_;
  std::vector<float> taken_;
  std::uint32_t rows_;
  std::uint32_t position_;
  double least_ = 1e9;
};

} // namespace

step_costs measure_steps(backend& device, std::size_t taken) {
  const auto& shape = device.shape();
  const auto held = std::min<std::uint64_t>(std::uint64_t{shape.kv_blocks} * shape.block_tokens,
                                            shape.positions_max);
  const auto rows_max = static_cast<std::uint32_t>(
    std::min<std::uint64_t>({shape.logit_rows_max, shape.rows_max, held}));
  const auto far = static_cast<std::uint32_t>(std::min<std::uint64_t>(512, held - 1));
  // A draft's rows read what its response's own row reads: what each adds is measured apart.
  const auto draft = static_cast<std::uint32_t>(std::min<std::uint64_t>(8, rows_max));
  const auto reach = std::min<std::uint32_t>(far, static_cast<std::uint32_t>(held - draft));
  measured_pass one_far{device, 1, reach, taken}, draft_near{device, draft, 0, taken},
    draft_far{device, draft, reach, taken};
  std::vector<measured_pass> near;
  for (std::uint32_t rows = 1; rows < rows_max; rows = rows < 4 ? rows + 1 : rows + rows / 2)
    near.emplace_back(device, rows, 0u, taken);
  near.emplace_back(device, rows_max, 0u, taken);
  for (int round = 0; round < rounds; ++round) {
    for (auto* pass : {&one_far, &draft_near, &draft_far})
      pass->run(round > 0);
    for (auto& pass : near)
      pass.run(round > 0);
  }
  std::vector<step_cost> points;
  for (const auto& pass : near) // more rows never cost less
    points.push_back(
      {pass.rows(), std::max(pass.seconds(), points.empty() ? 0.0 : points.back().seconds)});
  const auto first = (one_far.seconds() - near.front().seconds()) / std::max(1u, reach);
  const auto all = (draft_far.seconds() - draft_near.seconds()) / std::max(1u, reach);
  const auto drafted = (all - first) / std::max(1u, draft - 1);
  return {std::move(points), {first, std::min(std::max(drafted, 0.0), std::max(first, 0.0))}};
}

} // namespace rollcast
