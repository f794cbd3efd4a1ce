#pragma once

#include "engine/model/config.hpp"
#include "engine/model/random_model.hpp"
#include "kernels/types.hpp"
#include "tests/support/temporary_directory.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace rollcast {

/// A model of two small layers with the family's peculiarities: head_dim other than hidden / heads
/// and tied embeddings for Qwen3, llama3 scaling from 32 positions for Llama, an MTP layer for
/// MiMo, 3 of 11 experts in the second layer for Qwen3-MoE, 3 of 12 in groups beside 2 shared ones
/// for GLM and DeepSeek, which has a latent of 64 and yarn besides. Hidden 64, 4 heads, 2 kv heads,
/// FFN 96, vocabulary 200, 512 positions, eos 199.
model_config tiny_config(architecture family);

/// Writes a random checkpoint of `tiny_config(family)` and stops the test program if it cannot.
void write_tiny_model(const std::filesystem::path& directory, architecture family,
                      std::uint64_t seed = 1, kernels::dtype type = kernels::dtype::bf16,
                      std::size_t shards = 1);

} // namespace rollcast
