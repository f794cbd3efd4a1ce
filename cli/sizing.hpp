#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "engine/model/footprint.hpp"
#include "engine/numerics/profile.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace rollcast::cli {

/// A device by its memory, as its maker says.
struct known_device {
  std::string_view name;
  std::uint64_t memory_bytes; ///< 0: that of this machine.
  std::string_view source;
};

/// The devices that `rollcast plan --gpu` knows by name.
std::span<const known_device> known_devices() noexcept;

/// Fails with `bad_config` and the names that there are.
result<known_device> find_device(std::string_view name);

/// What is to be run. 0 is "not said", and what follows from it is not told.
struct sizing_question {
  std::uint64_t memory_bytes = 0;    ///< Of one device.
  std::uint32_t memory_percent = 90; ///< Of that for weights and KV.
  std::uint32_t weight_copies = 2;
  std::uint32_t context = 0; ///< Prompt and response, at the most.
  std::uint32_t prompt_tokens = 0;
  std::uint32_t response_tokens = 0; ///< As expected in the mean.
  std::uint32_t group_size = 1;
  std::uint32_t prompts = 0;
  std::uint32_t workers = 0;
  std::uint32_t block_tokens = 32;
  std::uint32_t max_batch = 64;
  double tokens_per_s = 0; ///< Of one worker, measured.
};

/// What fits one worker, and what a batch takes.
struct sizing {
  std::uint64_t usable_bytes = 0; ///< For weights and KV.
  std::uint64_t weight_bytes = 0; ///< All copies.
  std::uint64_t kv_bytes_per_token = 0;
  std::uint64_t kv_block_bytes = 0;
  std::uint64_t kv_blocks = 0;          ///< That fit beside the weights.
  std::uint64_t kv_blocks_used_max = 0; ///< By `max_batch` responses of the full context.
  std::uint64_t response_kv_bytes = 0;  ///< Of the full context.
  std::uint64_t fit_full = 0;           ///< Responses of the full context whose KV fits.
  std::uint64_t at_once_full = 0;       ///< Of those, what one step takes: `max_batch` at most.
  std::optional<std::uint64_t> fit_expected; ///< So for prompt and response as expected.
  std::optional<std::uint64_t> at_once_expected;
  std::uint64_t groups_at_once = 0;              ///< Whole ones on one worker, by `at_once_*`.
  std::uint64_t workers_for_group = 0;           ///< That one takes to run at once; 1 or more.
  std::uint64_t responses = 0;                   ///< Of the batch; 0: not said.
  std::uint64_t workers_full = 0;                ///< That run all of them at once, at full context.
  std::optional<std::uint64_t> workers_expected; ///< As expected.
  std::optional<std::uint64_t> batch_tokens;     ///< Generated in all, as expected.
  std::optional<double> batch_s; ///< That `workers` take at least, all of them busy to the end.
  std::uint64_t result_bytes_max = 0; ///< Kept by the scheduler until acknowledged.
};

/// Computes it from the engine's own sizes. Fails with `bad_config` if something is out of range,
/// the context is longer than the model's, or weights or one response do not fit.
result<sizing> size_up(const sizing_question& asked, const model_config& config,
                       const numerics_profile& profile, const weight_footprint& weights);

} // namespace rollcast::cli
