#include "cli/device.hpp"

#include "engine/backend/cpu_backend.hpp"
#include "engine/backend/cuda_backend.hpp"
#include "engine/base/machine_memory.hpp"
#include "engine/collective/nccl.hpp"
#include "engine/model/checkpoint.hpp"
#include "engine/model/footprint.hpp"
#include "engine/model/weights.hpp"
#include "kernels/dispatch.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <thread>

namespace rollcast::cli {

namespace {

/// Rows for drafts at the least; a batch of one wants a few.
constexpr std::uint32_t draft_rows_min = 16;

std::uint32_t processors() {
  return std::max(1u, std::thread::hardware_concurrency());
}

/// Blocks for `max_batch` full contexts, but at most a quarter of the machine's memory and at least
/// one full context.
std::uint32_t default_kv_blocks(const model_config& config, const numerics_profile& profile,
                                const device_options& options) {
  const std::uint64_t context_blocks =
    (config.max_positions + options.block_tokens - 1) / options.block_tokens;
  const auto block_bytes = // never 0: a size that is none is refused later, by name
    std::max<std::uint64_t>(1, kv_block_bytes(config, profile.kv_type, options.block_tokens));
  const std::uint64_t memory = machine_memory_bytes();
  const std::uint64_t affordable = memory / 4 / block_bytes;
  const std::uint64_t wanted = std::min(context_blocks * options.max_batch, affordable);
  return static_cast<std::uint32_t>(
    std::min<std::uint64_t>(std::max(wanted, context_blocks), UINT32_MAX));
}

result<void> choose_instructions(const std::string& name) {
  const auto known = kernels::instruction_sets();
  if (known.empty())
    return fail(errc::bad_config,
                "this processor has neither AVX2 with FMA nor NEON, which the CPU "
                "kernels need: use another machine");
  if (name.empty() || kernels::use_instruction_set(name))
    return {};
  std::string names;
  for (const auto set : known)
    names += (names.empty() ? "" : ", ") + std::string{set};
  return fail(errc::bad_config,
              "instruction set '" + name + "' is not one of this machine's: " + names);
}

/// Rows of one pass, and those of them whose logits are asked for.
std::uint32_t rows_of(const device_options& options) {
  return std::max(options.prefill_rows, options.max_batch);
}

std::uint32_t logit_rows_of(const device_options& options) {
  // Every verified token is a row that needs logits.
  const auto of_one = options.draft_tokens == 0 ? 1 : options.draft_tokens - 1;
  const auto drafted =
    options.speculate == "off" ? 0 : std::max(options.max_batch * of_one, draft_rows_min);
  return std::min(options.max_batch + drafted, rows_of(options));
}

result<std::unique_ptr<backend>> open_gpu(const device_options& options, std::uint32_t gpu,
                                          const numerics_profile& profile,
                                          const model_config& config, const checkpoint& source) {
  cuda_backend_options device;
  device.device = gpu;
  device.block_tokens = options.block_tokens;
  device.kv_blocks = options.kv_blocks;
  device.rows_max = rows_of(options);
  device.logit_rows_max = logit_rows_of(options);
  device.batch_max = options.max_batch;
  device.sharers = options.gpu_workers;
  prepare_options prepare;
  prepare.threads = threads_of(options);
  return make_cuda_backend(config, source, profile, device, prepare);
}

} // namespace

result<std::optional<std::uint32_t>> gpu_of(const std::string& device) {
  if (device == "cpu")
    return std::optional<std::uint32_t>{};
  if (device == "cuda")
    return std::optional<std::uint32_t>{0};
  constexpr std::string_view prefix = "cuda:";
  std::uint32_t number = 0;
  const char* const end = device.data() + device.size();
  if (device.starts_with(prefix)) {
    const auto read = std::from_chars(device.data() + prefix.size(), end, number);
    if (read.ec == std::errc{} && read.ptr == end)
      return std::optional{number};
  }
  return fail(errc::bad_config, "unknown device '" + device + "': give cpu, or cuda:N for GPU N");
}

result<std::shared_ptr<communicator_maker>> collectives_of(const device_options& options,
                                                           bool keyed) {
  const auto gpu = gpu_of(options.device);
  if (!gpu)
    return fail(gpu);
  const bool must = options.collectives == "nccl";
  if (options.collectives == "off" || (!*gpu && !must))
    return std::shared_ptr<communicator_maker>{};
  if (!*gpu)
    return fail(errc::bad_config, "--collectives nccl is for GPUs, this worker's device is cpu: "
                                  "give --device cuda:N, or leave it out");
  if (keyed && !must) {
    spdlog::info("KV and weights go by ZeroMQ: there is a data key, and NCCL encrypts nothing");
    return std::shared_ptr<communicator_maker>{};
  }
  auto opened = open_nccl(**gpu);
  if (opened)
    return std::shared_ptr<communicator_maker>{std::move(*opened)};
  if (must)
    return fail(errc::bad_config, "--collectives nccl: " + opened.error().detail);
  spdlog::info("KV and weights go by ZeroMQ: {}", opened.error().detail);
  return std::shared_ptr<communicator_maker>{};
}

result<numerics_profile> profile_of(const device_options& options) {
  const auto gpu = gpu_of(options.device);
  if (!gpu)
    return fail(gpu);
  const bool on_gpu = gpu->has_value();
  if (options.numerics.empty())
    return find_profile(on_gpu ? cuda_profile : default_profile);
  auto profile = find_profile(options.numerics);
  if (profile && profile->gpu != on_gpu)
    return fail(errc::unsupported_numerics,
                "numerics profile " + std::string{profile->name} + " is not of device "
                  + options.device + ": "
                  + (on_gpu ? "leave --numerics out, or give --device cpu"
                            : "give --device cuda:N, or another --numerics"));
  if (profile && !profile->exact && !options.inexact)
    return fail(errc::unsupported_numerics,
                "numerics profile " + std::string{profile->name}
                  + " is not exact: bench engine measures the price of exactness with it, nothing "
                    "is served in it; leave --numerics out");
  return profile;
}

std::uint32_t threads_of(const device_options& options) {
  return options.threads != 0 ? options.threads : processors();
}

result<std::unique_ptr<backend>> open_device(const device_options& options,
                                             std::shared_ptr<thread_pool> pool) {
  const auto profile = profile_of(options);
  if (!profile)
    return fail(profile);
  const auto gpu = *gpu_of(options.device);
  if (gpu)
    if (auto ok = find_gpu(*gpu); !ok) // before a checkpoint of many GB is read
      return fail(ok);
  if (!gpu)
    if (auto ok = choose_instructions(options.instruction_set); !ok)
      return fail(ok);
  const auto config = load_config(options.model);
  if (!config)
    return fail(config);
  auto source = checkpoint::open(options.model);
  if (!source)
    return fail(source);
  if (gpu)
    return open_gpu(options, *gpu, *profile, *config, *source);
  load_options load;
  load.threads = threads_of(options);
  auto weights = model_weights::load(*config, *source, profile->arithmetic, load);
  if (!weights)
    return fail(weights);
  cpu_backend_options device;
  device.threads = static_cast<std::uint32_t>(load.threads);
  device.pool = std::move(pool);
  device.block_tokens = options.block_tokens;
  device.kv_blocks = options.kv_blocks;
  if (device.kv_blocks == 0 && device.block_tokens != 0)
    device.kv_blocks = default_kv_blocks(*config, *profile, options);
  device.rows_max = rows_of(options);
  device.logit_rows_max = logit_rows_of(options);
  return make_cpu_backend(std::move(*weights), *profile, device);
}

spill_limits spill_of(const device_options& options) {
  return {std::uint64_t{options.kv_spill_memory_mib} << 20,
          std::uint64_t{options.kv_spill_disk_mib} << 20, options.kv_spill_dir};
}

engine_limits limits_of(const device_options& options) {
  return {options.max_batch, rows_of(options), 0};
}

} // namespace rollcast::cli
