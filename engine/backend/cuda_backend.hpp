#pragma once

#include "engine/backend/backend.hpp"
#include "engine/backend/device_weights.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "engine/model/tensor_source.hpp"

#include <cstdint>
#include <memory>
#include <string_view>

namespace rollcast {

class product_library;

/// The numerics profile of a GPU.
inline constexpr std::string_view cuda_profile = "cuda-bf16-v1";

/// The same with the products of cuBLASLt, which are not exact: what exactness costs is measured
/// against it.
inline constexpr std::string_view cuda_fast_profile = "cuda-bf16-fast-v1";

/// What a GPU is made into a device with. None of it can change a bit.
struct cuda_backend_options {
  std::uint32_t device = 0;        ///< As the driver numbers them, from 0.
  std::uint32_t kv_blocks = 0;     ///< 0: as many as fit, see `make_cuda_backend`.
  std::uint32_t block_tokens = 32; ///< A multiple of `kernels::kv_group`.
  std::uint32_t rows_max = 512;
  std::uint32_t logit_rows_max = 64;
  std::uint32_t batch_max = 64;    ///< Responses of one step: bounds what `kv_blocks` 0 takes.
  std::uint32_t sharers = 1;       ///< Processes that use the GPU alike: `kv_blocks` 0 shares it.
  std::uint32_t positions_max = 0; ///< 0: the model's own limit.
  std::uint32_t graph_rows_max = 256; ///< Passes of up to so many rows are graphs; 0: none is.
  std::uint32_t kv_stage_bytes = 0;   ///< Of the buffers that KV images pass through; 0: 32 MiB.
  bool poison = false; ///< Turns all that a pass may not read to NaN first. For tests.
  /// What a profile that is not exact multiplies with; null: cuBLASLt, found when it is asked for.
  std::shared_ptr<const product_library> products = nullptr;
};

/// Fails with `bad_config` and one line unless this build can use a GPU of that number: there is no
/// CUDA in the build, no driver, no GPU, or not so many.
result<void> find_gpu(std::uint32_t device);

/// Loads a model's weights to a GPU and allocates there every buffer of a pass and the KV blocks,
/// once. With `kv_blocks` 0 it takes nine tenths of what is then free, less the weights once more,
/// whose next epoch must fit beside them; but no more than two full contexts for each response of a
/// step. Of several `sharers` each counts on its part of the whole memory alone, so that it does
/// not matter which of them comes first.
///
/// @returns as `find_gpu`; as `model_weights::load` for a checkpoint that is wrong; `bad_config`
///          when an option is out of range, the shape is none that the kernels compute (head_dim
///          64 or 128, sizes multiples of 8), the device's memory does not do, with the numbers, or
///          the profile is not exact and there is no cuBLASLt.
/// Numerics: kernels/cuda, each header its own. The residual stream is f32; what enters a product
/// is
///           rounded to bf16 once: normed rows, attention's output, silu(gate) * up.
/// A fault of the device later on ends the process with one line and exit code 5: what is on it
/// is lost, and the cluster computes it again elsewhere.
result<std::unique_ptr<backend>> make_cuda_backend(const model_config& config,
                                                   const tensor_source& tensors,
                                                   const numerics_profile& profile,
                                                   const cuda_backend_options& options,
                                                   const prepare_options& prepare);

} // namespace rollcast
