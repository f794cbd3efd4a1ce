#include "cli/sizing.hpp"

#include "kernels/kv_layout.hpp"

#include <algorithm>
#include <array>
#include <string>

namespace rollcast::cli {

namespace {

constexpr std::uint64_t gigabyte = 1'000'000'000;

/// A data sheet's GB is taken as 10^9 bytes: never more than there is.
constexpr std::array devices{
  known_device{"h200", 141 * gigabyte, "NVIDIA H200 Tensor Core GPU data sheet: 141 GB"},
  known_device{"h100", 80 * gigabyte, "NVIDIA H100 Tensor Core GPU data sheet, SXM: 80 GB"},
  known_device{"a100", 80 * gigabyte, "NVIDIA A100 Tensor Core GPU data sheet: 80 GB"},
  known_device{"a100-40gb", 40 * gigabyte, "NVIDIA A100 Tensor Core GPU data sheet: 40 GB"},
  known_device{"l40s", 48 * gigabyte, "NVIDIA L40S GPU data sheet: 48 GB"},
  known_device{"cpu", 0, "this machine's memory"},
};

/// The scheduler keeps an id, a log-probability and a kept mass of each token.
constexpr std::uint64_t result_bytes_per_token = 12;

std::uint64_t ceil_of(std::uint64_t n, std::uint64_t by) {
  return (n + by - 1) / by;
}

std::string gib(std::uint64_t bytes) {
  const auto tenths = bytes * 10 / (std::uint64_t{1} << 30);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GiB";
}

result<void> bad(const std::string& what) {
  return fail(errc::bad_config, what);
}

result<void> check(const sizing_question& q, const model_config& config) {
  const std::uint64_t expected = std::uint64_t{q.prompt_tokens} + q.response_tokens;
  if (q.context == 0 || q.context > config.max_positions)
    return bad("context is " + std::to_string(q.context) + ": it must be 1 to "
               + std::to_string(config.max_positions) + ", which the model has");
  if (q.block_tokens == 0 || q.block_tokens % kernels::kv_group != 0)
    return bad("block-tokens is " + std::to_string(q.block_tokens) + ": it must be a multiple of "
               + std::to_string(kernels::kv_group));
  if (q.memory_percent == 0 || q.memory_percent > 100)
    return bad("memory-percent is " + std::to_string(q.memory_percent) + ": it must be 1 to 100");
  if (q.max_batch == 0 || q.group_size == 0)
    return bad("max-batch and group-size must be at least 1");
  if (expected > q.context)
    return bad("prompt and response tokens are " + std::to_string(expected)
               + " together: more than the context of " + std::to_string(q.context));
  if (q.response_tokens == 0 && q.tokens_per_s > 0)
    return bad("tokens-per-s tells a time only with response-tokens, the expected length");
  if (q.workers == 0 && q.tokens_per_s > 0)
    return bad("tokens-per-s, of one worker, tells a time only with workers, how many there are");
  return {};
}

void add_batch(const sizing_question& q, sizing& s) {
  s.responses = std::uint64_t{q.prompts} * q.group_size;
  if (s.responses == 0)
    return;
  s.workers_full = ceil_of(s.responses, s.at_once_full);
  s.result_bytes_max = s.responses * (q.context - q.prompt_tokens) * result_bytes_per_token;
  if (!s.at_once_expected)
    return;
  s.workers_expected = ceil_of(s.responses, *s.at_once_expected);
  s.batch_tokens = s.responses * q.response_tokens;
  if (q.tokens_per_s > 0 && q.workers > 0)
    s.batch_s = static_cast<double>(*s.batch_tokens) / (q.tokens_per_s * q.workers);
}

} // namespace

std::span<const known_device> known_devices() noexcept {
  return devices;
}

result<known_device> find_device(std::string_view name) {
  std::string known;
  for (const auto& device : devices) {
    if (device.name == name)
      return device;
    known += (known.empty() ? "" : ", ") + std::string{device.name};
  }
  return fail(errc::bad_config, "unknown gpu '" + std::string{name} + "': known are " + known
                                  + "; for another give --memory-gib");
}

result<sizing> size_up(const sizing_question& q, const model_config& config,
                       const numerics_profile& profile, const weight_footprint& weights) {
  if (auto ok = check(q, config); !ok)
    return fail(ok);
  sizing s;
  s.usable_bytes = q.memory_bytes / 100 * q.memory_percent;
  s.weight_bytes = weights.packed * q.weight_copies;
  s.kv_block_bytes = kv_block_bytes(config, profile.kv_type, q.block_tokens);
  s.kv_bytes_per_token = s.kv_block_bytes / q.block_tokens;
  const auto full_blocks = ceil_of(q.context, q.block_tokens);
  s.response_kv_bytes = full_blocks * s.kv_block_bytes;
  s.kv_blocks_used_max = full_blocks * q.max_batch;
  if (s.weight_bytes + s.response_kv_bytes > s.usable_bytes)
    return fail(errc::bad_config,
                "weights take " + gib(s.weight_bytes) + " and one response "
                  + gib(s.response_kv_bytes) + " of KV, but " + gib(s.usable_bytes)
                  + " are usable; take a larger device, a smaller context, or --numerics "
                    "cpu-bf16-v1");
  s.kv_blocks = (s.usable_bytes - s.weight_bytes) / s.kv_block_bytes;
  s.fit_full = s.kv_blocks / full_blocks;
  s.at_once_full = std::min<std::uint64_t>(s.fit_full, q.max_batch);
  if (q.response_tokens > 0) {
    s.fit_expected =
      s.kv_blocks / ceil_of(std::uint64_t{q.prompt_tokens} + q.response_tokens, q.block_tokens);
    s.at_once_expected = std::min<std::uint64_t>(*s.fit_expected, q.max_batch);
  }
  const auto at_once = s.at_once_expected.value_or(s.at_once_full);
  s.groups_at_once = at_once / q.group_size;
  s.workers_for_group = ceil_of(q.group_size, at_once);
  add_batch(q, s);
  return s;
}

} // namespace rollcast::cli
