// Goal: how many rows an expert has changes no row's bits, at the ends of what can be: a few
// experts have every row and the others none, or one row alone has an expert.
// Method: every row is computed by itself. Then the router is forced (correction biases, or weights
// of zero, whose ties go to the lowest ids), and all rows go through one pass; or the rows of a
// pass are chosen so that one of them is alone with an expert. Logits are compared with memcmp, and
// the loads are counted from the ids. A rollout with the forced router runs in every setting.

#include "engine/model/tensor_source.hpp"
#include "tests/contract/engine_settings.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::test {

namespace {

constexpr std::uint32_t rows = 200;
constexpr std::uint32_t last = 3; ///< Position of the rows, behind others of their sequences.

/// What a pass made of one row.
struct row_result {
  std::vector<float> logits;
  std::vector<std::byte> experts; ///< [sparse layer, slot]

  bool operator==(const row_result& other) const {
    return logits.size() == other.logits.size() && experts == other.experts
           && std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
  }
};

/// Computes one position of some of the sequences, a block each, in one pass.
std::vector<row_result> pass_of(backend& device, const std::vector<std::uint32_t>& sequences,
                                std::uint32_t position) {
  std::vector<token_id> tokens;
  std::vector<kernels::row_place> places;
  std::vector<kernels::attention_sequence> spans;
  std::vector<std::uint32_t> all(sequences.size());
  std::iota(all.begin(), all.end(), 0);
  for (const auto& s : sequences) {
    tokens.push_back(
      static_cast<token_id>((7 * s + 31 * position + 3) % device.shape().vocabulary));
    places.push_back({position, s});
    spans.push_back({&s, static_cast<std::uint32_t>(spans.size()), 1, position});
  }
  forward_rows pass{tokens, places, spans, all};
  pass.keep_experts = true;
  device.forward(pass);
  const auto logits = device.logits();
  const auto ids = device.experts();
  const auto width = device.shape().vocabulary;
  const auto bytes = device.shape().experts.position_bytes();
  std::vector<row_result> out(sequences.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto row = logits.subspan(i * width, width);
    const auto experts = ids.subspan(i * bytes, bytes);
    out[i] = {{row.begin(), row.end()}, {experts.begin(), experts.end()}};
  }
  return out;
}

class expert_loads : public engine_contract {
protected:
  const expert_config& how() const { return weights->config().experts; }
  std::size_t layers() const { return weights->config().layers - how().dense_layers.size(); }

  std::unique_ptr<backend> device_with(const std::shared_ptr<const model_weights>& by,
                                       std::uint32_t threads) const {
    auto options = device_of(threads, rows, 16);
    options.logit_rows_max = rows;
    return make_device(by, profile(), options);
  }

  /// Every row by itself, whose sequence the device has then.
  static std::vector<row_result> alone(backend& device) {
    std::vector<row_result> out;
    for (std::uint32_t s = 0; s < rows; ++s)
      for (std::uint32_t position = 0; position <= last; ++position)
        if (auto made = pass_of(device, {s}, position); position == last)
          out.push_back(std::move(made.front()));
    return out;
  }

  std::set<std::size_t> experts_of(const row_result& row, std::size_t layer) const {
    std::set<std::size_t> out;
    for (std::size_t slot = 0; slot < how().per_token; ++slot)
      out.insert(std::to_integer<std::size_t>(row.experts[layer * how().per_token + slot]));
    return out;
  }

  /// The experts that a forced router chooses; they lie in two groups, where there are some.
  std::set<std::size_t> forced_experts() const {
    return how().choice_bias ? std::set<std::size_t>{1, 2, how().count - 1}
                             : std::set<std::size_t>{0, 1, 2};
  }

  /// The model with routers that send every row to `forced_experts`.
  std::shared_ptr<const model_weights> forced() const {
    const auto& config = weights->config();
    tensor_set changes{"a forced router"};
    for (std::uint32_t layer = 0; layer < config.layers; ++layer) {
      if (!config.is_sparse(layer))
        continue;
      const auto gate = "model.layers." + std::to_string(layer) + ".mlp.gate.";
      tensor_view changed{gate + "weight", kernels::dtype::bf16, {how().count, config.hidden}, {}};
      auto bytes = std::make_shared<std::vector<std::byte>>(how().count * config.hidden * 2);
      if (how().choice_bias) {
        std::vector<float> bias(how().count, 0.0f);
        for (const auto e : forced_experts())
          bias[e] = 100.0f;
        bytes->resize(bias.size() * sizeof(float));
        std::memcpy(bytes->data(), bias.data(), bytes->size());
        changed = {gate + "e_score_correction_bias", kernels::dtype::f32, {how().count}, {}};
      }
      changed.bytes = *bytes;
      EXPECT_TRUE(changes.add(changed, bytes));
    }
    const auto made = model_weights::load_over(*weights, changes);
    EXPECT_TRUE(made) << made.error().detail;
    return made ? *made : nullptr;
  }
};

TEST_P(expert_loads, of_all_rows_on_a_few_experts_change_no_row) {
  const auto by = forced();
  ASSERT_TRUE(by);
  ASSERT_EQ(forced_experts().size(), how().per_token);
  for (const std::uint32_t threads : {1u, 2u}) {
    const auto device = device_with(by, threads);
    const auto expected = alone(*device);
    std::set<std::vector<float>> different;
    std::vector<std::uint32_t> all(rows);
    std::iota(all.begin(), all.end(), 0);
    for (const std::uint32_t batch : {rows, 129u, 64u, 17u, 2u}) {
      all.resize(batch);
      const auto got = pass_of(*device, all, last);
      for (std::size_t i = 0; i < batch; ++i) {
        EXPECT_EQ(got[i], expected[i]) << "row " << i << " of " << batch;
        for (std::size_t layer = 0; layer < layers(); ++layer)
          ASSERT_EQ(experts_of(got[i], layer), forced_experts()) << "row " << i;
        different.insert(got[i].logits);
      }
    }
    EXPECT_GT(different.size(), rows / 2) << "rows that are all alike prove little";
  }
}

TEST_P(expert_loads, of_one_row_alone_change_neither_it_nor_the_others) {
  for (const std::uint32_t threads : {1u, 2u}) {
    const auto device = device_with(weights, threads);
    const auto expected = alone(*device);
    for (std::size_t layer = 0; layer < layers(); ++layer) {
      std::size_t in_a_crowd = 0;
      for (std::size_t expert = 0; expert < how().count; ++expert) {
        std::vector<std::uint32_t> batch;
        std::size_t on_it = 0;
        for (std::uint32_t s = 0; s < rows; ++s)
          if (!experts_of(expected[s], layer).contains(expert) || ++on_it == 1)
            batch.push_back(s);
        if (on_it == 0)
          continue; // corrections keep some experts from all of these rows
        in_a_crowd += batch.size() > rows / 2 ? 1 : 0;
        const auto what =
          "layer " + std::to_string(layer) + ", expert " + std::to_string(expert) + ", row ";
        const auto got = pass_of(*device, batch, last);
        on_it = 0;
        for (std::size_t i = 0; i < batch.size(); ++i) {
          EXPECT_EQ(got[i], expected[batch[i]]) << what << batch[i];
          on_it += experts_of(got[i], layer).count(expert);
        }
        EXPECT_EQ(on_it, 1u) << what;
      }
      EXPECT_GT(in_a_crowd, 2u) << "layer " << layer;
    }
  }
}

TEST_P(expert_loads, of_all_rows_on_a_few_experts_change_no_response) {
  const auto by = forced();
  ASSERT_TRUE(by);
  const auto expected = run_setting(by, profile(), work, plain);
  for (const auto& s : settings) {
    const auto got = run_setting(by, profile(), work, s);
    for (const auto& [id, response] : expected)
      EXPECT_TRUE(same_bits(response, got.at(id))) << s.name << ", response " << id;
  }
}

INSTANTIATE_TEST_SUITE_P(families, expert_loads,
                         ::testing::Combine(::testing::Values("qwen3_moe", "glm4_moe",
                                                              "deepseek_v3", "moonlight",
                                                              "kimi_k2"),
                                            ::testing::Values("cpu-f32-v1", "cpu-bf16-v1")),
                         name_of_model);

} // namespace

} // namespace rollcast::test
