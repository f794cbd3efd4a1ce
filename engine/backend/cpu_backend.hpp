#pragma once

#include "engine/backend/backend.hpp"
#include "engine/backend/thread_pool.hpp"
#include "engine/base/error.hpp"
#include "engine/model/weights.hpp"

#include <cstdint>
#include <memory>

namespace rollcast {

/// What a CPU device is made with. None of it can change a bit.
struct cpu_backend_options {
  std::uint32_t threads = 1;
  std::uint32_t kv_blocks = 1024;
  std::uint32_t block_tokens = 32; ///< A multiple of `kernels::kv_group`.
  std::uint32_t rows_max = 512;
  std::uint32_t logit_rows_max = 64;
  std::uint32_t positions_max = 0; ///< 0: the model's own limit.
  /// Its threads, shared with others of the same thread; null: `threads` of its own.
  std::shared_ptr<thread_pool> pool = {};
};

/// Makes a CPU device over packed weights: allocates every buffer of a forward pass and exactly
/// `kv_blocks` KV blocks, once. Fails with `bad_config` when an option is out of range or the
/// memory cannot be had, with `unsupported_numerics` for a profile of a GPU.
result<std::unique_ptr<backend>> make_cpu_backend(std::shared_ptr<const model_weights> weights,
                                                  const numerics_profile& profile,
                                                  const cpu_backend_options& options);

} // namespace rollcast
