#pragma once

#include "engine/backend/cpu_backend.hpp"
#include "engine/model/weights.hpp"
#include "engine/step/engine.hpp"

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast::test {

/// Folders of tests/fixtures/models: a tiny random-weight checkpoint of each family.
inline const std::vector<std::string> fixture_families{"qwen3",       "qwen2",     "llama",
                                                       "mimo",        "qwen3_moe", "glm4_moe",
                                                       "deepseek_v3", "moonlight", "kimi_k2"};

/// The folder of one of them.
std::filesystem::path fixture_model(const std::string& family);

/// Loads a checkpoint for a numerics profile; fails the test if it cannot be loaded.
std::shared_ptr<const model_weights> load_weights(const std::filesystem::path& directory,
                                                  std::string_view profile);

/// A CPU device over `weights`; fails the test if the options are refused.
std::unique_ptr<backend> make_device(const std::shared_ptr<const model_weights>& weights,
                                     std::string_view profile, const cpu_backend_options& options);

} // namespace rollcast::test
