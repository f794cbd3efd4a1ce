#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"

#include <filesystem>
#include <utility>

namespace rollcast::cli {

/// The yardstick model: a Qwen3 of 100 M parameters (75.5 M in layers, 24.6 M in the tied head).
model_config bench_config();

/// The same with experts, Qwen3-MoE's: 4 of 16 for a token, a quarter of the dense FFN wide, so
/// that as many parameters are active, but for the routers (0.15 M).
model_config bench_moe_config();

/// A checkpoint of one of them with random weights, in a directory that goes when this does.
class bench_model {
public:
  /// Writes it; another seed, other weights. Fails with `io_failed`.
  static result<bench_model> make(std::uint64_t seed = 1,
                                  const model_config& config = bench_config());
  bench_model(bench_model&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  bench_model& operator=(bench_model&&) = delete;
  ~bench_model();

  const std::filesystem::path& path() const noexcept { return path_; }

private:
  explicit bench_model(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

} // namespace rollcast::cli
