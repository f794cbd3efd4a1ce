#pragma once

#include "engine/backend/backend.hpp"
#include "engine/backend/thread_pool.hpp"
#include "engine/base/error.hpp"
#include "engine/cache/spill_store.hpp"
#include "engine/collective/communicator.hpp"
#include "engine/model/config.hpp"
#include "engine/step/engine.hpp"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace rollcast::cli {

/// What a worker, `score` and `bench engine` need to make a device and an engine.
struct device_options {
  std::filesystem::path model;
  std::string device = "cpu";    ///< cpu, or cuda:N; cuda is cuda:0.
  std::string numerics;          ///< "": the device's own, see `profile_of`.
  std::uint32_t threads = 0;     ///< 0: all processors of this machine.
  std::uint32_t kv_blocks = 0;   ///< 0: room for `max_batch` full contexts, or a quarter of memory.
  std::uint32_t gpu_workers = 1; ///< That share the GPU: `kv_blocks` 0 is a share of it.
  std::uint32_t block_tokens = 32;       ///< Positions of one KV block.
  std::uint32_t max_batch = 64;          ///< Responses of one step.
  std::uint32_t prefill_rows = 512;      ///< Rows of one step.
  std::string instruction_set;           ///< "" is the best that this machine has.
  std::uint32_t kv_spill_memory_mib = 0; ///< KV kept beside the blocks, in memory.
  std::uint32_t kv_spill_disk_mib = 0;   ///< And in a file once that is full.
  std::filesystem::path kv_spill_dir = "/var/tmp";
  std::string speculate = "off";     ///< off, self, group, mtp, eagle3 or auto.
  std::uint32_t draft_width = 1;     ///< Tokens tried in one place; 1 drafts chains.
  std::filesystem::path draft_model; ///< Directory; "": none, or the model's own.
  std::uint32_t draft_steps = 0;     ///< Of a drafter's model; these three 0: `settle_drafts`.
  std::uint32_t draft_topk = 0;
  std::uint32_t draft_tokens = 0;
  std::string draft_server;         ///< Endpoint; "none"; "": what the command starts by itself.
  std::string collectives = "auto"; ///< off, nccl, or auto: that where it can be.
  bool inexact = false; ///< A profile that is not exact will do: nothing is served, it is measured.
};

/// The number in "cuda:N"; nothing for "cpu". Fails with `bad_config` for anything else.
result<std::optional<std::uint32_t>> gpu_of(const std::string& device);

/// The way from the device to those of other workers: null where there is none and none is asked
/// for. With `auto` there is none either if data has a key (`keyed`): NCCL encrypts nothing. Fails
/// with `bad_config` for `nccl` without a GPU, or where NCCL is not found.
result<std::shared_ptr<communicator_maker>> collectives_of(const device_options& options,
                                                           bool keyed);

/// The profile that the device computes in: the one named, or cpu-f32-v1 on the CPU and
/// cuda-bf16-v1 on a GPU. Fails with `bad_config` if the device is none that there can be, with
/// `unsupported_numerics` if the profile is unknown, of another kind of device, or not exact where
/// that will not do.
result<numerics_profile> profile_of(const device_options& options);

/// Threads of the options' CPU device; 0 stands for all processors.
std::uint32_t threads_of(const device_options& options);

/// Loads the checkpoint and makes the device over it. Fails with one line also for a GPU that is
/// not there, or that this build cannot use.
/// @param pool  Threads of a CPU device, to be shared; null: its own.
result<std::unique_ptr<backend>> open_device(const device_options& options,
                                             std::shared_ptr<thread_pool> pool = {});

/// The spill space that follows from the options.
spill_limits spill_of(const device_options& options);

/// The engine limits that follow from the options.
engine_limits limits_of(const device_options& options);

} // namespace rollcast::cli
