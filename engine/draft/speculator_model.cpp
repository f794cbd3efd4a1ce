#include "engine/base/check.hpp"
#include "engine/draft/speculator.hpp"

#include <algorithm>

namespace rollcast {

namespace {

/// What a model must promise above what there is without it.
constexpr double gain_min = 1.02;
/// Steps for which a model sees that is not going to draft.
constexpr std::uint32_t patience_steps = 16;

} // namespace

void speculator::consider(std::shared_ptr<model_drafter> model, step_costs costs) {
  ROLLCAST_CHECK(options_.how == speculation::auto_);
  model_ = std::move(model);
  model_costs_ = std::move(costs);
}

state_wish speculator::wants_states() const {
  return model_ ? model_->wants_states() : state_wish{};
}

void speculator::use_target(const std::shared_ptr<const device_weights>& target) {
  if (model_)
    model_->use_target(target);
}

/// Wakes the model if it is `due` to draft, soon or now, and has it sleep if it has not been for a
/// while: then it forgets all responses, and their states are not kept. @returns whether it has
/// seen enough to draft.
bool speculator::wake_model(bool due) {
  if (due) {
    not_due_ = 0;
    warm_ = awake_ ? warm_ - (warm_ > 0 ? 1 : 0) : warm_steps;
    awake_ = true;
  } else if (awake_ && ++not_due_ == patience_steps) {
    awake_ = false;
    model_->forget();
  }
  return awake_ && warm_ == 0;
}

void speculator::see(std::span<const seen_rows> seen, std::span<const float> states) {
  if (model_)
    model_->see(seen, states);
}

/// The model drafts for this step, if it pays and has seen enough. The group's drafts are planned.
bool speculator::draft_with_model(std::span<const draft_seat> seats, const step_load& load) {
  const bool admitted = model_guard_.admits(load.rows);
  const bool soon = admitted || model_guard_.hold_left(load.rows) < warm_steps;
  const auto steps = soon ? plan_model(seats.size(), load) : 0;
  const bool ready = wake_model(steps > 0);
  if (steps == 0 || !admitted || !ready) {
    model_->rest();
    return false;
  }
  model_->draft(seats, load, steps, &*costs_);
  return true;
}

/// How many tokens of each response the model should draft: as many as promise the most tokens a
/// second, its own passes counted. 0: the group's drafts, or none, promise as much.
std::uint32_t speculator::plan_model(std::size_t seats, const step_load& load) const {
  const auto rows = static_cast<std::uint32_t>(seats);
  const auto group = static_cast<double>(seats) + promised_;
  const auto group_rows = static_cast<std::uint32_t>(chosen_);
  const auto cost_of = [&](std::uint32_t drafted) {
    return costs_->seconds(
      {load.rows + drafted, load.kv_tokens, std::uint64_t{drafted} * load.seat_kv_tokens});
  };
  double best = gain_min * group / cost_of(group_rows);
  std::uint32_t chosen = 0;
  double survival = 1;
  double tokens = 1; // of one response
  for (std::uint32_t steps = 1; steps <= model_->options().steps; ++steps) {
    survival *= static_cast<double>(model_->chance(steps - 1));
    tokens += survival;
    // A chain's tokens, or as many of a tree as go with so many steps.
    const auto share = model_->options().tokens - 1;
    const auto drafted =
      std::min(load.rows_free, rows * std::max(1u, share * steps / model_->options().steps));
    // One pass takes in what the step before has made, each other one token of each response.
    const auto grown = rows * model_->options().topk;
    const auto passes =
      model_costs_->seconds({static_cast<std::uint32_t>(static_cast<double>(rows) * tokens), 0})
      + (steps - 1) * model_costs_->seconds({grown, 0});
    const auto rate = static_cast<double>(seats) * tokens / (cost_of(drafted) + passes);
    if (rate > best) {
      best = rate;
      chosen = steps;
    }
  }
  return chosen;
}

} // namespace rollcast
