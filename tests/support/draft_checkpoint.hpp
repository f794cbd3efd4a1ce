#pragma once

#include "engine/model/config.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace rollcast::test {

/// A drafter's checkpoint in memory, to be spoilt and written.
struct draft_checkpoint {
  struct tensor {
    std::string dtype; ///< "F32", "F16", "I64", "BOOL".
    std::vector<std::size_t> shape;
    std::vector<std::byte> bytes;
  };

  nlohmann::ordered_json config;
  std::map<std::string, tensor> tensors;

  /// Adds a tensor of random numbers, as `write_random_model` makes them.
  void add_random(const std::string& name, std::vector<std::size_t> shape, std::uint64_t seed,
                  const std::string& dtype = "F32");
  /// Gives every tensor whose name begins with `from` a name that begins with `to`.
  void rename(const std::string& from, const std::string& to);
  /// Writes config.json and model.safetensors; fails the test if it cannot.
  void write(const std::filesystem::path& directory) const;
};

/// A random EAGLE-3 head for a model, over the outputs of its layers 0, the middle and the last,
/// that can say every other token; heads and FFN are of its own.
draft_checkpoint random_eagle3(const model_config& target, std::uint64_t seed,
                               std::size_t positions = 512);

/// A random MTP layer for a model, alone in its directory, in MiMo's names.
draft_checkpoint random_mtp(const model_config& target, std::uint64_t seed,
                            std::size_t positions = 512);

} // namespace rollcast::test
