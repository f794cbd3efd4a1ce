// Goal: the engine computes the model that PyTorch computes, for each family.
// Method: tests/fixtures/models holds tiny random checkpoints and the logits that transformers gave
// for them (float32; make_fixtures.py). The engine runs the same tokens in one prefill and in
// pieces; the difference must stay within float32 noise for cpu-f32-v1 and within bf16 rounding for
// cpu-bf16-v1. A rounding may move a near tie of a router, and then a row has other experts: of
// families with experts a quarter of the rows may differ by more.

#include "tests/support/fixture_models.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>

namespace rollcast::test {

namespace {

/// Logits of every position of one sequence, fed in pieces of `piece` rows.
std::vector<float> logits_of(backend& device, const std::vector<token_id>& tokens,
                             std::uint32_t piece) {
  std::vector<float> all;
  std::vector<std::uint32_t> blocks(16);
  std::iota(blocks.begin(), blocks.end(), 0);
  const auto size = static_cast<std::uint32_t>(tokens.size());
  for (std::uint32_t begin = 0; begin < size; begin += piece) {
    const std::uint32_t rows = std::min(piece, size - begin);
    std::vector<kernels::row_place> places;
    std::vector<std::uint32_t> logit_rows;
    for (std::uint32_t i = 0; i < rows; ++i) {
      places.push_back({begin + i, (begin + i) / 16});
      logit_rows.push_back(i);
    }
    const kernels::attention_sequence sequence{blocks.data(), 0, rows, begin};
    device.forward({std::span{tokens}.subspan(begin, rows), places, {&sequence, 1}, logit_rows});
    const auto logits = device.logits();
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

/// The largest difference of each row whose logits are stored.
std::vector<double> differences(const std::string& family, std::string_view profile,
                                std::uint32_t piece) {
  std::ifstream in{fixture_model(family) / "reference.json"};
  const auto reference = nlohmann::json::parse(in);
  const auto weights = load_weights(fixture_model(family), profile);
  cpu_backend_options options;
  options.kv_blocks = 16;
  options.block_tokens = 16;
  options.logit_rows_max = options.rows_max = 256;
  const auto device = make_device(weights, profile, options);
  const std::size_t vocabulary = weights->config().vocabulary;
  std::vector<double> all;
  for (const auto& sequence : reference.at("sequences")) {
    const auto tokens = sequence.at("token_ids").get<std::vector<token_id>>();
    const auto got = logits_of(*device, tokens, piece);
    const auto& positions = sequence.at("positions");
    for (std::size_t i = 0; i < positions.size(); ++i) {
      double largest = 0;
      for (std::size_t v = 0; v < vocabulary; ++v) {
        const double expected = sequence.at("logits")[i][v].get<double>();
        const double found = got.at(positions[i].get<std::size_t>() * vocabulary + v);
        EXPECT_TRUE(std::isfinite(found));
        largest = std::max(largest, std::abs(found - expected));
      }
      all.push_back(largest);
    }
  }
  return all;
}

double largest_difference(const std::string& family, std::string_view profile,
                          std::uint32_t piece) {
  const auto all = differences(family, profile, piece);
  return *std::max_element(all.begin(), all.end());
}

class reference_logits : public ::testing::TestWithParam<std::string> {};

TEST_P(reference_logits, agree_with_pytorch_in_float32) {
  const double difference = largest_difference(GetParam(), "cpu-f32-v1", 256);
  RecordProperty("difference", std::to_string(difference));
  EXPECT_LT(difference, 1e-4);
  EXPECT_LT(largest_difference(GetParam(), "cpu-f32-v1", 7), 1e-4);
}

TEST_P(reference_logits, stay_within_bf16_rounding_of_pytorch) {
  const auto all = differences(GetParam(), "cpu-bf16-v1", 256);
  const auto config = load_config(fixture_model(GetParam()));
  ASSERT_TRUE(config.has_value());
  const auto far = std::count_if(all.begin(), all.end(), [](double x) { return x >= 0.25; });
  EXPECT_LE(far, config->experts.count == 0 ? 0 : static_cast<std::ptrdiff_t>(all.size() / 4));
}

INSTANTIATE_TEST_SUITE_P(families, reference_logits, ::testing::ValuesIn(fixture_families),
                         [](const auto& info) { return info.param; });

} // namespace

} // namespace rollcast::test
