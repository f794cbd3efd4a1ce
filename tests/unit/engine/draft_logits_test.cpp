// Goal: an EAGLE-3 head and an MTP layer compute what their published architectures say.
// Method: tiny drafts with the logits and states that a plain PyTorch implementation gives for
// tokens and hidden states (tests/fixtures/models/drafters), for first and re-applied steps.

#include "engine/backend/cpu_drafting.hpp"
#include "tests/support/fixture_models.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>

namespace rollcast::test {

namespace {

struct reference_case {
  std::string folder; ///< Of the reference.
  std::string draft;  ///< Fixture that holds the draft.
  std::string target;
  draft_kind kind;
};

const std::vector<reference_case> references{
  {"eagle3", "drafters/eagle3", "drafters/target", draft_kind::eagle3},
  {"mtp", "drafters/mtp", "drafters/target", draft_kind::mtp},
  {"mimo_mtp", "mimo", "mimo", draft_kind::mtp},
  {"glm4_moe_mtp", "glm4_moe", "glm4_moe", draft_kind::mtp},
  {"deepseek_v3_mtp", "deepseek_v3", "deepseek_v3", draft_kind::mtp},
};

nlohmann::json read_reference(const std::string& folder) {
  std::ifstream in{fixture_model("drafters/" + folder) / "reference.json"};
  return nlohmann::json::parse(in);
}

std::ostream& operator<<(std::ostream& out, const reference_case& c) {
  return out << c.folder;
}

class draft_logits : public ::testing::TestWithParam<reference_case> {
protected:
  draft_logits() {
    auto loaded = load_draft(fixture_model(GetParam().draft), GetParam().kind, target->config(),
                             kernels::arithmetic::f32);
    EXPECT_TRUE(loaded) << loaded.error().detail;
    cpu_backend_options options;
    const auto device = make_device(target, "cpu-f32-v1", options);
    auto made = make_cpu_drafting(*loaded, *find_profile("cpu-f32-v1"), options, device->shape(), 4,
                                  {.steps = 4, .topk = 8, .tokens = 5});
    EXPECT_TRUE(made) << made.error().detail;
    model = std::move(*made);
    model.device->borrow(device->weights());
    EXPECT_TRUE(model.device->keep_states(model.own));
    blocks.resize(8);
    std::iota(blocks.begin(), blocks.end(), 0u);
  }

  /// Runs rows at consecutive positions; logits of the last.
  void run(std::span<const token_id> tokens, std::uint32_t position, std::span<const float> taken,
           bool own) {
    std::vector<kernels::row_place> places;
    for (std::uint32_t i = 0; i < tokens.size(); ++i)
      places.push_back({position + i, blocks[(position + i) / model.device->shape().block_tokens]});
    const auto rows = static_cast<std::uint32_t>(tokens.size());
    const kernels::attention_sequence sequence{blocks.data(), 0, rows, position};
    const std::vector<std::uint32_t> logit_rows{rows - 1};
    forward_rows pass{tokens, places, {&sequence, 1}, logit_rows};
    pass.keep_states = true;
    pass.taken = taken;
    pass.own_states = own;
    model.device->forward(pass);
  }
  static void expect_near(std::span<const float> got, const nlohmann::json& wanted,
                          const std::string& what) {
    ASSERT_EQ(got.size(), wanted.size()) << what;
    float most = 1;
    for (const auto& w : wanted)
      most = std::max(most, std::abs(w.get<float>()));
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], wanted[i].get<float>(), 1e-4f * most) << what << ", " << i;
  }

  std::shared_ptr<const model_weights> target =
    load_weights(fixture_model(GetParam().target), "cpu-f32-v1");
  nlohmann::json reference = read_reference(GetParam().folder);
  drafting_model model;
  std::vector<std::uint32_t> blocks;
};

TEST_P(draft_logits, are_those_of_the_plain_implementation) {
  const auto tokens = reference["token_ids"].get<std::vector<token_id>>();
  std::vector<float> hidden;
  for (const auto& row : reference["hidden"])
    for (const auto& x : row)
      hidden.push_back(x.get<float>());
  const auto aux = reference["aux_layers"].get<std::vector<std::uint32_t>>();
  EXPECT_EQ(model.wants.layers, aux);
  EXPECT_EQ(model.wants.last, aux.empty());
  ASSERT_EQ(hidden.size(), model.width * reference["hidden"].size());
  std::size_t compared = 0;
  for (const auto& chain : reference["chains"]) {
    const auto start = chain["start"].get<std::uint32_t>();
    // The prefix in two parts, as chunked prefill brings it.
    const auto cut = start / 2;
    if (cut > 0)
      run(std::span{tokens}.subspan(1, cut), 0, std::span{hidden}.first(cut * model.width), false);
    run(std::span{tokens}.subspan(1 + cut, start + 1 - cut), cut,
        std::span{hidden}.subspan(cut * model.width, (start + 1 - cut) * model.width), false);
    std::vector<float> state;
    for (std::uint32_t k = 0; k < chain["logits"].size(); ++k) {
      const auto what = "row " + std::to_string(start) + ", step " + std::to_string(k);
      if (k > 0)
        run(std::span{tokens}.subspan(start + k + 1, 1), start + k, state, true);
      expect_near(model.device->logits(), chain["logits"][k], "logits of " + what);
      const auto states = model.device->states();
      const auto last = states.last(model.own_width);
      expect_near(last, chain["states"][k], "state of " + what);
      state.assign(last.begin(), last.end());
      ++compared;
    }
  }
  EXPECT_GE(compared, 8u);
}

INSTANTIATE_TEST_SUITE_P(fixtures, draft_logits, ::testing::ValuesIn(references),
                         [](const auto& info) { return info.param.folder; });

/// The states that a target hands over are what the reference says of the same tokens.
TEST(target_states, are_those_of_the_plain_implementation) {
  for (const auto& c : references) {
    const auto reference = read_reference(c.folder);
    const auto tokens = reference["token_ids"].get<std::vector<token_id>>();
    const auto device =
      make_device(load_weights(fixture_model(c.target), "cpu-f32-v1"), "cpu-f32-v1", {});
    const auto aux = reference["aux_layers"].get<std::vector<std::uint32_t>>();
    ASSERT_TRUE(device->keep_states({aux, aux.empty()}));
    EXPECT_FALSE(device->keep_states({{99}, false})) << "there is no such layer";
    const auto rows = static_cast<std::uint32_t>(reference["hidden"].size());
    const std::vector<std::uint32_t> blocks{3, 1, 2};
    std::vector<kernels::row_place> places;
    for (std::uint32_t i = 0; i < rows; ++i)
      places.push_back({i, blocks[i / device->shape().block_tokens]});
    const kernels::attention_sequence sequence{blocks.data(), 0, rows, 0};
    forward_rows pass{std::span{tokens}.first(rows), places, {&sequence, 1}, {}};
    pass.keep_states = true;
    device->forward(pass);
    const auto states = device->states();
    const auto width = reference["hidden"][0].size();
    ASSERT_EQ(states.size(), rows * width) << c;
    for (std::uint32_t row = 0; row < rows; ++row)
      for (std::size_t i = 0; i < width; ++i)
        ASSERT_NEAR(states[row * width + i], reference["hidden"][row][i].get<float>(), 1e-3)
          << c << ", row " << row << ", " << i;
  }
}

} // namespace

} // namespace rollcast::test
