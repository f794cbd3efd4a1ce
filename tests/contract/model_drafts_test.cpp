// Goal: no response changes a bit because an MTP layer or an EAGLE-3 head drafts for it.
// Method: the mixed rollout (temperatures 0, 0.8 and 1, filters) runs without drafts, and with
// chains and trees of drafters' models, of the model's own layers and random ones, in settings that
// cut, move, drop and preempt; results are compared with memcmp.

#include "tests/contract/model_drafts.hpp"

#include <gtest/gtest.h>

namespace rollcast::test {

namespace {

using model_drafts = engine_contract;
using own_mtp_layers = engine_contract;

/// Those whose checkpoints have an MTP layer.
const std::vector<std::string> families_with_mtp{"mimo", "glm4_moe", "deepseek_v3", "moonlight"};

/// Of all settings those that do something else with what a drafter remembers.
std::vector<setting> telling_settings() {
  std::vector<setting> out;
  for (const auto& s : settings)
    for (const char* name :
         {"batch of 7, two threads", "rows of 19, blocks of 64", "chunks of 7, KV dropped",
          "chunks of 5, KV moved", "cut after every other step, KV moved", "preemption"})
      if (s.name == name)
        out.push_back(s);
  EXPECT_EQ(out.size(), 6u);
  return out;
}

TEST_P(model_drafts, of_random_models_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  const drafts_of eagle{random_eagle3(weights->config(), 7), draft_kind::eagle3, weights->config(),
                        profile()};
  const drafts_of mtp{random_mtp(weights->config(), 7), draft_kind::mtp, weights->config(),
                      profile()};
  for (const auto& s : telling_settings())
    for (const auto* drafts : {&eagle, &mtp})
      for (const auto& how : {chain_of_3, tree_of_12}) {
        model_draft_figures figures;
        const auto what = s.name + (drafts == &eagle ? ", eagle3, " : ", mtp, ")
                          + std::to_string(how.tokens) + " tokens";
        expect_same(expected, run_with_model(weights, profile(), work, s, *drafts, how, &figures),
                    what);
        EXPECT_GT(figures.tokens, 0u) << what;
        EXPECT_GT(figures.accepted, 0u) << what << ": shared noise makes even these right at times";
        EXPECT_EQ(figures.starved, 0u) << what;
        EXPECT_EQ(figures.contexts, 0u) << what << ": of responses that are over";
      }
}

TEST_P(own_mtp_layers, that_draft_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  const drafts_of own{fixture_model(family()), draft_kind::mtp, weights->config(), profile()};
  for (const auto& s : telling_settings())
    for (const auto& how : {chain_of_3, tree_of_12}) {
      model_draft_figures figures;
      const auto what = s.name + ", " + std::to_string(how.tokens) + " tokens";
      expect_same(expected, run_with_model(weights, profile(), work, s, own, how, &figures), what);
      EXPECT_GT(figures.accepted, 0u) << what;
    }
}

TEST(families_with_mtp_layers, are_all_tested) {
  std::vector<std::string> found;
  for (const auto& family : fixture_families)
    if (const auto config = load_config(fixture_model(family)); config && config->mtp_layers > 0)
      found.push_back(family);
  EXPECT_EQ(found, families_with_mtp);
}

TEST_P(model_drafts, score_what_was_drafted_for_with_no_difference) {
  const drafts_of eagle{random_eagle3(weights->config(), 7), draft_kind::eagle3, weights->config(),
                        profile()};
  const auto done = run_with_model(weights, profile(), work, settings[1], eagle, tree_of_12);
  engine scorer{make_device(weights, profile(), settings[1].device), settings[1].limits};
  scorer.speculate(eagle.make(scorer.device().shape(), 7, chain_of_3));
  std::vector<float> scored;
  for (const auto& [id, response] : done) {
    auto tokens = response.prompt;
    tokens.insert(tokens.end(), response.tokens.begin(), response.tokens.end());
    const auto temperature = response.temperature == 0 ? 1 : response.temperature;
    ASSERT_TRUE(scorer.score(tokens, static_cast<std::uint32_t>(response.prompt.size()),
                             temperature, scored));
    EXPECT_EQ(scored, response.logprobs) << "response " << id;
  }
}

/// Costs that make drafts pay, so that `auto` drafts by both ways.
step_costs costs_that_pay() {
  return {{{1, 1.0}, {256, 1.1}}, {0, 0}};
}

/// Tokens drafted with `auto`, by who drafted them.
struct drafted_tokens {
  std::uint64_t by_models = 0;
  std::uint64_t by_groups = 0;
};

/// Runs a rollout in a setting, every engine with `auto` over a model of its own and three groups.
std::map<std::uint64_t, finished_response>
run_with_auto(const std::shared_ptr<const model_weights>& weights, std::string_view profile,
              const rollout& work, const setting& s, const drafts_of& drafts,
              const model_draft_options& how, drafted_tokens& drafted) {
  std::vector<engine> engines;
  std::vector<std::shared_ptr<model_drafter>> models;
  for (std::size_t i = 0; i < s.engines; ++i) {
    auto& e =
      engines.emplace_back(make_device(weights, profile, with_rows_for_drafts(s.device)), s.limits);
    models.push_back(drafts.make(e.device().shape(), e.limits().batch_max, how, s.device.threads));
    const auto both = std::make_shared<speculator>(
      speculation_options{.how = speculation::auto_, .tree_width = how.topk}, costs_that_pay());
    both->consider(models.back(), {{{1, 1e-6}, {256, 2e-6}}, {0, 0}});
    e.speculate(both);
    for (const auto& request : work)
      both->follow(request.response, {1 + request.response.value % 3}, false, request.tokens);
  }
  auto done = run_rollout(work, engines, s.how);
  for (std::size_t i = 0; i < s.engines; ++i) {
    drafted.by_models += models[i]->figures().tokens;
    drafted.by_groups += engines[i].stats().draft_tokens - models[i]->figures().tokens;
  }
  return done;
}

TEST_P(model_drafts, beside_those_of_groups_change_no_bit) {
  const auto expected = run_setting(weights, profile(), work, plain);
  const drafts_of eagle{random_eagle3(weights->config(), 7), draft_kind::eagle3, weights->config(),
                        profile()};
  const drafts_of mtp{random_mtp(weights->config(), 7), draft_kind::mtp, weights->config(),
                      profile()};
  for (const auto* drafts : {&eagle, &mtp})
    for (const auto& how : {chain_of_3, tree_of_12}) {
      drafted_tokens drafted;
      const auto what = std::string(drafts == &eagle ? "eagle3, " : "mtp, ")
                        + std::to_string(how.tokens) + " tokens";
      for (const auto& s : telling_settings())
        expect_same(expected, run_with_auto(weights, profile(), work, s, *drafts, how, drafted),
                    "auto, " + s.name + ", " + what);
      EXPECT_GT(drafted.by_models, 0u) << what;
      EXPECT_GT(drafted.by_groups, 0u) << what;
    }
}

INSTANTIATE_TEST_SUITE_P(families, model_drafts, every_model(), name_of_model);
INSTANTIATE_TEST_SUITE_P(families, own_mtp_layers,
                         ::testing::Combine(::testing::ValuesIn(families_with_mtp),
                                            ::testing::Values("cpu-f32-v1", "cpu-bf16-v1")),
                         name_of_model);

} // namespace

} // namespace rollcast::test
