// Goal: FP8 weights with block scales are read as the bf16 weights that DeepSeek's converter
// writes, and nothing behind the checkpoint can tell that they were FP8.
// Method: every e4m3 number by its definition; blocks at ragged edges; the fixture, whose logits
// come from weights that PyTorch widened, against a checkpoint of those widened weights; one thing
// broken at a time.

#include "engine/model/checkpoint.hpp"
#include "engine/model/fp8_blocks.hpp"
#include "engine/model/weights.hpp"
#include "kernels/types.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace rollcast {
namespace {

TEST(fp8_blocks, have_the_values_of_e4m3) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const float got = widen_e4m3(static_cast<std::uint8_t>(bits));
    if ((bits & 0x7fu) == 0x7fu) {
      EXPECT_TRUE(std::isnan(got)) << bits;
      continue;
    }
    const int exponent = static_cast<int>(bits >> 3 & 15u), fraction = static_cast<int>(bits & 7u);
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                     : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
    EXPECT_EQ((bits & 0x80u) != 0 ? -size : size, got) << bits;
  }
  EXPECT_EQ(448.0f, widen_e4m3(0x7e));
  EXPECT_EQ(1.0f, widen_e4m3(0x38));
}

TEST(fp8_blocks, take_the_scale_of_their_block_and_round_once_to_bf16) {
  constexpr std::size_t rows = 130, columns = 300;
  std::vector<std::byte> weights(rows * columns), scale_bytes(2 * 3 * sizeof(float));
  for (std::size_t i = 0; i < weights.size(); ++i)
    weights[i] = static_cast<std::byte>(i * 7 % 127);
  const float scales[6] = {1.0f, 0.3f, 2e-4f, 17.0f, 1e-30f, 0.07f};
  std::memcpy(scale_bytes.data(), scales, sizeof scales);
  const auto wide = widen_fp8_blocks(weights, rows, columns, scale_bytes);
  ASSERT_EQ(rows * columns * 2, wide.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) {
      std::uint16_t got = 0;
      std::memcpy(&got, &wide[(r * columns + c) * 2], 2);
      const float exact = widen_e4m3(std::to_integer<std::uint8_t>(weights[r * columns + c]))
                          * scales[r / 128 * 3 + c / 128];
      ASSERT_EQ(kernels::round_bf16(exact), got) << r << ", " << c;
    }
}

/// A safetensors file of one FP8 matrix of 3 x 2 and, if asked for, its scale.
void write_file(const std::filesystem::path& path, bool scaled, const std::string& scale_shape) {
  std::string header = R"({"a.weight":{"dtype":"F8_E4M3","shape":[3,2],"data_offsets":[0,6]})";
  if (scaled)
    header += R"(,"a.weight_scale_inv":{"dtype":"F32","shape":)" + scale_shape
              + R"(,"data_offsets":[6,10]})";
  header += "}";
  const std::uint64_t length = header.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << header;
  const unsigned char bytes[6] = {0x38, 0xb8, 0x40, 0x00, 0x01, 0x7e};
  out.write(reinterpret_cast<const char*>(bytes), sizeof bytes);
  const float scale = 0.5f;
  if (scaled)
    out.write(reinterpret_cast<const char*>(&scale), sizeof scale);
}

TEST(fp8_checkpoint, is_one_of_bf16_without_scales) {
  const temporary_directory directory;
  write_file(directory / "model.safetensors", true, "[1,1]");
  auto opened = checkpoint::open(directory.path());
  ASSERT_TRUE(opened.has_value()) << opened.error().detail;
  const auto source = std::move(*opened);
  EXPECT_EQ((std::vector<std::string_view>{"a.weight"}), source.names());
  EXPECT_FALSE(source.contains("a.weight_scale_inv"));
  EXPECT_EQ(kernels::dtype::bf16, *source.type_of("a.weight"));
  const auto view = source.tensor("a.weight");
  ASSERT_TRUE(view.has_value()) << view.error().detail;
  EXPECT_EQ(kernels::dtype::bf16, view->type);
  EXPECT_EQ((std::vector<std::size_t>{3, 2}), view->shape);
  const float want[] = {0.5f, -0.5f, 1.0f, 0.0f, 0x1p-10f, 224.0f};
  ASSERT_EQ(12u, view->bytes.size());
  for (std::size_t i = 0; i < 6; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, &view->bytes[2 * i], 2);
    EXPECT_EQ(want[i], kernels::widen_bf16(bits)) << i;
  }
  source.release(*view);
  EXPECT_EQ(view->bytes.data(), source.tensor("a.weight")->bytes.data()) << "made once, and kept";
}

TEST(fp8_checkpoint, refuses_weights_without_fitting_scales) {
  const temporary_directory directory;
  const auto refusal = [&](bool scaled, const std::string& shape) {
    write_file(directory / "model.safetensors", scaled, shape);
    const auto source = checkpoint::open(directory.path());
    EXPECT_TRUE(source.has_value());
    const auto view = source->tensor("a.weight");
    EXPECT_FALSE(view.has_value());
    return view ? "" : view.error().detail;
  };
  EXPECT_NE(std::string::npos, refusal(false, "").find("weight_scale_inv"));
  const auto shape = refusal(true, "[1]");
  EXPECT_NE(std::string::npos, shape.find("a.weight is FP8 of [3, 2]")) << shape;
  EXPECT_NE(std::string::npos, shape.find("F32 of [1]")) << shape;
}

TEST(fp8_checkpoint, loads_as_the_weights_that_pytorch_widened) {
  const auto path =
    std::filesystem::path(ROLLCAST_SOURCE_DIR) / "tests/fixtures/models/deepseek_v3";
  const auto config = load_config(path);
  ASSERT_TRUE(config.has_value()) << config.error().detail;
  auto source = checkpoint::open(path);
  ASSERT_TRUE(source.has_value()) << source.error().detail;
  const auto weights = model_weights::load(*config, *source, kernels::arithmetic::f32);
  ASSERT_TRUE(weights.has_value()) << weights.error().detail;
  for (const auto& tensor : (*weights)->tensors())
    EXPECT_EQ(tensor.name.ends_with("correction_bias") ? kernels::dtype::f32 : kernels::dtype::bf16,
              tensor.type)
      << tensor.name;
  // XXH3-128 of what `from_fp8` of make_fixtures.py makes of it, by Python's xxhash.
  const auto all = (*weights)->tensors();
  const auto at = std::find_if(all.begin(), all.end(), [](const tensor_info& tensor) {
    return tensor.name == "model.layers.1.self_attn.kv_a_proj_with_mqa.weight";
  });
  ASSERT_NE(all.end(), at);
  EXPECT_EQ("46394ad444033e9dd71699a080b57c05", to_string(at->hash));
}

} // namespace
} // namespace rollcast
