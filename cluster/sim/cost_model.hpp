#pragma once

#include "engine/base/error.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace rollcast::sim {

/// What a fleet of equal workers costs. A step in which `rows` responses each generate a token,
/// over `kv` cached tokens in all, after computing `prefill` new ones, takes
///   fixed + rows * per_row + kv * per_kv_token + prefill * per_prefill_token   seconds,
/// and where it verifies drafts, `draft_step_s` more, and `draft_row_s` for each drafted token.
struct cost_model {
  std::string name;
  std::uint32_t workers = 1;
  std::uint32_t kv_blocks = 0; ///< Of one worker.
  std::uint32_t block_tokens = 16;
  std::uint32_t batch_max = 1024; ///< Responses that one worker runs at once.
  std::uint32_t kv_bytes_per_token = 0;

  double step_fixed_s = 0;
  double step_row_s = 0;
  double step_kv_token_s = 0;
  double prefill_token_s = 0;
  double draft_step_s = 0;
  double draft_row_s = 0;

  std::uint64_t spill_tokens = 0;  ///< KV that a worker keeps beside its blocks; 0: none.
  double spill_bytes_per_s = 50e9; ///< To there or back, one copy at a time.

  double migration_bytes_per_s = 1e9; ///< Of one worker, in and out together.
  double migration_fixed_s = 1e-3;    ///< Of one transfer, however small.
  double message_s = 5e-4;            ///< Control message, one way.
};

/// The models that go with the workloads of the same name, and "cpu", a small machine.
/// Nothing for another name.
std::optional<cost_model> find_cost_model(std::string_view name);

/// Reads what `rollcast bench engine` wrote: fixed and row costs are a least-squares line through
/// the step times by batch size of the profile `cpu-f32-v1` (or the only one there), prefill is as
/// measured; the rest is that of "cpu". Fails with `io_failed` or `bad_config`.
result<cost_model> read_cost_model(const std::filesystem::path& bench_engine_json);

/// Fails with `bad_config` if the model cannot be simulated.
result<void> check(const cost_model& model);

} // namespace rollcast::sim
