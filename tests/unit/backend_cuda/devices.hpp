#pragma once

#include "engine/backend/cpu_backend.hpp"
#include "engine/backend/cuda_backend.hpp"
#include "engine/base/check.hpp"
#include "engine/model/checkpoint.hpp"
#include "engine/model/random_model.hpp"
#include "tests/support/fixture_models.hpp"
#include "tests/support/rollout_driver.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/support/tiny_model.hpp"

#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::test {

/// A model that is as small as the GPU's kernels take: the family's peculiarities, head_dim 64.
inline model_config small_config(architecture family) {
  model_config config = tiny_config(family);
  config.hidden = 64;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 64;
  config.intermediate = 72; // no multiple of a tile
  config.vocabulary = 100;
  config.rope.head_dim = 64;
  config.max_positions = 700; // above one split of keys
  config.eos_token_ids = {99};
  config.mtp_layers = 0;
  return config;
}

/// A checkpoint of it, and devices over it.
class small_model {
public:
  explicit small_model(architecture family, std::uint64_t seed = 1,
                       kernels::dtype type = kernels::dtype::bf16)
    : small_model(small_config(family), seed, type) {}
  small_model(const model_config& shape, std::uint64_t seed,
              kernels::dtype type = kernels::dtype::bf16)
    : config(shape) {
    ROLLCAST_CHECK(write_random_model(directory_.path(), config, seed, type).has_value());
  }

  checkpoint tensors() const { return std::move(*checkpoint::open(directory_.path())); }

  result<std::unique_ptr<backend>> try_cuda(const cuda_backend_options& options) const {
    return make_cuda_backend(config, tensors(), *find_profile(cuda_profile), options, {});
  }

  std::unique_ptr<backend> cuda(const cuda_backend_options& options) const {
    auto made = try_cuda(options);
    if (!made)
      std::cerr << made.error().detail << '\n';
    ROLLCAST_CHECK(made.has_value());
    return std::move(*made);
  }

  std::unique_ptr<backend> cpu(std::string_view profile) const {
    cpu_backend_options options;
    options.kv_blocks = 64;
    options.block_tokens = 16;
    return make_device(load_weights(directory_.path(), profile), profile, options);
  }

  model_config config;

private:
  temporary_directory directory_;
};

inline cuda_backend_options
small_options(std::uint32_t blocks = 64, std::uint32_t block_tokens = 16, std::uint32_t rows = 48) {
  cuda_backend_options options;
  options.kv_blocks = blocks;
  options.block_tokens = block_tokens;
  options.rows_max = rows;
  options.logit_rows_max = 24;
  options.batch_max = 8;
  options.kv_stage_bytes = 5'000; // so that images take several turns
  return options;
}

/// Requests that the emulator computes in seconds: short prompts, one long, mixed sampling.
inline rollout small_rollout(std::size_t responses = 6) {
  auto work = mixed_rollout(99, responses, 8, 5);
  for (std::size_t i = 0; i < work.size(); ++i) {
    auto& request = work[i];
    if (request.tokens.size() > 60)
      request.tokens.resize(60);
    request.prompt_tokens = static_cast<std::uint32_t>(request.tokens.size());
    request.sampling.max_new_tokens = 5 + static_cast<std::uint32_t>(i) % 3;
    request.sampling.min_new_tokens = request.sampling.max_new_tokens / 2;
  }
  return work;
}

} // namespace rollcast::test
