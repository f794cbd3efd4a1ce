#pragma once

#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace rollcast {

/// Writes a checkpoint directory in Hugging Face's format with random weights: config.json and
/// model.safetensors, or, with more than one shard, `model-00001-of-0000N.safetensors` and their
/// index. For tests and benchmarks.
///
/// Values are bell-shaped (a sum of four uniforms) with mean 0 and standard deviation 1/sqrt(in)
/// for matrices and the embedding, 0.02 for biases, and mean 1 and deviation 0.1 for norms, so that
/// activations and logits keep the size that they have in trained models. They depend on seed and
/// tensor name alone: not on the number of shards or threads, and for other dtypes they are the
/// same numbers, rounded (f16 rounds values below 2^-14 to multiples of 2^-24).
///
/// @param config  `dtype` is ignored; config.json says what is written. A MiMo with `mtp_layers`
///                gets `model.mtp_layers.*` tensors too.
/// @param threads  That write at once, a shard each; a thread holds a few MiB, whatever the size.
/// @returns `io_failed` if the directory or a file cannot be written.
result<void> write_random_model(const std::filesystem::path& directory, const model_config& config,
                                std::uint64_t seed, kernels::dtype type, std::size_t shards = 1,
                                std::size_t threads = 1);

} // namespace rollcast
