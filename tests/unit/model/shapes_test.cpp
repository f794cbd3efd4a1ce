// Goal: the shapes are those of the published models, and a checkpoint of one is made of the same
// bytes by any number of threads.
// Method: the published numbers of parameters, one published config.json, and a checkpoint of two
// layers with a small vocabulary written twice.

#include "engine/model/random_model.hpp"
#include "engine/model/shapes.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

namespace rollcast {
namespace {

TEST(model_shapes, have_as_many_parameters_as_the_published_models) {
  const auto parameters = [](const char* name) {
    return checkpoint_bytes(*find_shape(name), kernels::dtype::bf16) / 2;
  };
  EXPECT_EQ(parameters("qwen3-0.6b"), 596'049'920u);
  EXPECT_EQ(parameters("qwen3-4b"), 4'022'468'096u);
  EXPECT_EQ(parameters("qwen3-8b"), 8'190'735'360u);
  EXPECT_EQ(parameters("llama-3.1-8b"), 8'030'261'248u);
}

TEST(model_shapes, are_what_the_published_config_says) {
  const auto ours = *find_shape("qwen3-8b");
  auto theirs = *load_config(std::filesystem::path{ROLLCAST_SOURCE_DIR} / "deploy/sizing/qwen3-8b");
  theirs.eos_token_ids = ours.eos_token_ids; // its generation_config.json is not there
  theirs.dtype = ours.dtype;
  EXPECT_EQ(to_config_json(ours), to_config_json(theirs));
}

TEST(model_shapes, that_are_unknown_are_refused_with_those_that_there_are) {
  const auto unknown = find_shape("qwen3-9b");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, errc::bad_config);
  for (const auto& shape : model_shapes())
    EXPECT_NE(unknown.error().detail.find(shape.name), std::string::npos);
}

TEST(model_shapes, are_written_alike_by_any_number_of_threads) {
  auto config = *find_shape("qwen3-0.6b");
  config.layers = 2;
  config.vocabulary = 1200; // more than one piece of 2^20 elements all the same
  config.hidden = 1024;
  config.eos_token_ids = {1199};
  const temporary_directory one;
  const temporary_directory three;
  ASSERT_TRUE(write_random_model(one.path(), config, 5, kernels::dtype::bf16, 3, 1));
  ASSERT_TRUE(write_random_model(three.path(), config, 5, kernels::dtype::bf16, 3, 3));
  const auto bytes = [](const std::filesystem::path& file) {
    std::ifstream in{file, std::ios::binary};
    return std::string{std::istreambuf_iterator<char>{in}, {}};
  };
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator{one.path()}) {
    const auto written = bytes(entry.path());
    EXPECT_FALSE(written.empty());
    EXPECT_TRUE(written == bytes(three.path() / entry.path().filename())) << entry.path();
    ++files;
  }
  EXPECT_EQ(files, 5u); // three shards, their index, config.json
}

} // namespace
} // namespace rollcast
