#include "cli/bench_model.hpp"

#include "engine/model/random_model.hpp"

#include <unistd.h>

#include <string>
#include <system_error>

namespace rollcast::cli {

model_config bench_config() {
  model_config config;
  config.family = architecture::qwen3;
  config.hidden = 768;
  config.layers = 12;
  config.heads = 12;
  config.kv_heads = 4;
  config.head_dim = 64;
  config.intermediate = 2048;
  config.vocabulary = 32000;
  config.rope.head_dim = 64;
  config.rope.theta = 1e6;
  config.max_positions = 2048;
  config.tie_embeddings = true;
  config.qk_norm = true;
  config.dtype = "bfloat16";
  return config;
}

model_config bench_moe_config() {
  model_config config = bench_config();
  config.family = architecture::qwen3_moe;
  config.experts.count = 16;
  config.experts.per_token = 4;
  config.experts.intermediate = config.intermediate / config.experts.per_token;
  config.experts.normalise = true;
  return config;
}

result<bench_model> bench_model::make(std::uint64_t seed, const model_config& config) {
  bench_model out{std::filesystem::temp_directory_path()
                  / ("rollcast-bench-" + std::to_string(::getpid()) + "-" + std::to_string(seed))};
  if (auto ok = write_random_model(out.path_, config, seed, kernels::dtype::bf16); !ok)
    return fail(ok);
  return out;
}

bench_model::~bench_model() {
  std::error_code ignored;
  if (!path_.empty())
    std::filesystem::remove_all(path_, ignored);
}

} // namespace rollcast::cli
