// Goal: where drafters' models have crashed engines in the field, or drafted nothing in silence,
// responses have the bits that they have without, and drafts are made and counted.
// Method: a test for each such report, named after it (numbers of issues and pull requests of
// sglang and vllm), on the fixture models; every block must come back.

#include "engine/backend/drafted_backend.hpp"
#include "engine/model/checkpoint.hpp"
#include "engine/model/random_model.hpp"
#include "tests/contract/model_drafts.hpp"
#include "tests/contract/poisoning_backend.hpp"

#include <gtest/gtest.h>

namespace rollcast::test {

namespace {

constexpr std::string_view f32 = "cpu-f32-v1";

class draft_models_in_the_field : public ::testing::Test {
protected:
  std::shared_ptr<const model_weights> weights = load_weights(fixture_model("qwen3"), f32);
  const model_config& config = weights->config();
  rollout work = mixed_rollout(static_cast<std::uint32_t>(config.vocabulary), 12, 60, 5);
  setting all{"all at once", with_rows_for_drafts(device_of(1, 256, 16)), {16, 128, 0}, {}};

  std::map<std::uint64_t, finished_response> plain() {
    return run_setting(weights, f32, work, all);
  }
  drafts_of eagle(std::size_t positions = 512) const {
    return {random_eagle3(config, 7, positions), draft_kind::eagle3, config, f32};
  }
  drafts_of mtp(std::size_t positions = 512) const {
    return {random_mtp(config, 7, positions), draft_kind::mtp, config, f32};
  }
};

// Locations past the draft's context; a crash, no drafts, or drafts of nothing past it.
TEST_F(draft_models_in_the_field,
       sglang_9388_6783_vllm_24662_58080_context_shorter_than_the_targets) {
  for (auto& request : work)
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 60;
  const auto expected = plain();
  for (const bool by_eagle : {true, false})
    for (const auto& how : {chain_of_3, tree_of_12}) {
      model_draft_figures wide, figures;
      run_with_model(weights, f32, work, all, by_eagle ? eagle() : mtp(), how, &wide);
      const auto drafts = by_eagle ? eagle(24) : mtp(24);
      const auto got = run_with_model(weights, f32, work, all, drafts, how, &figures);
      expect_same(expected, got, "24 positions");
      EXPECT_EQ(wide.restarts, 0u);
      EXPECT_GT(figures.restarts, work.size()) << "prompts and responses go past it, and it tells";
      // A prompt of 150 and a response of 60 of each: nothing stops in the middle.
      EXPECT_GT(figures.tokens, 60 * work.size() / 2);
      EXPECT_GT(static_cast<double>(figures.accepted) / static_cast<double>(figures.tokens),
                0.5 * static_cast<double>(wide.accepted) / static_cast<double>(wide.tokens));
    }
}

// Stale positions and states in rows that are not of the step, as the batch grows and shrinks.
TEST_F(draft_models_in_the_field, sglang_9888_6309_8296_8336_9521_poisoned_rows_beside_the_drafts) {
  const auto expected = plain();
  for (const auto& drafts : {eagle(), mtp()})
    for (const auto& how : {chain_of_3, tree_of_12}) {
      model_draft_figures clean;
      run_with_model(weights, f32, work, all, drafts, how, &clean);
      std::vector<engine> engines;
      engines.emplace_back(make_device(weights, f32, all.device), all.limits);
      const auto by = drafts.make(engines[0].device().shape(), all.limits.batch_max, how);
      by->model().device =
        std::make_shared<poisoning_backend>(by->model().device, drafts.draft().weights->config());
      engines[0].speculate(by);
      expect_same(expected, run_rollout(work, engines, all.how), "poisoned");
      EXPECT_EQ(by->figures().tokens, clean.tokens);
      EXPECT_EQ(by->figures().accepted, clean.accepted);
      EXPECT_GT(clean.accepted, 0u);
    }
}

// Block tables and locations of trees where a block holds more than one token.
TEST_F(draft_models_in_the_field, sglang_26532_27360_27338_27460_27486_trees_in_blocks_of_many) {
  const auto expected = plain();
  for (const std::uint32_t block : {16u, 32u, 64u}) {
    all.device = with_rows_for_drafts(device_of(1, 4096 / block, block));
    for (const auto& drafts : {eagle(), mtp()}) {
      model_draft_figures figures;
      expect_same(expected, run_with_model(weights, f32, work, all, drafts, tree_of_12, &figures),
                  "blocks of " + std::to_string(block));
      EXPECT_GT(figures.accepted, 0u);
    }
  }
}

// Steps 20, topk 10, draft tokens 100: masks and limits for fewer.
TEST_F(draft_models_in_the_field, sglang_9481_12349_tree_of_a_hundred_tokens) {
  all.device.rows_max = all.device.logit_rows_max = 1024; // that all of them get a row
  all.limits.rows_max = 1024;
  const auto expected = plain();
  model_draft_figures figures;
  const model_draft_options how{.steps = 20, .topk = 10, .tokens = 100, .survival_min = 0};
  expect_same(expected, run_with_model(weights, f32, work, all, eagle(), how, &figures), "100");
  EXPECT_GT(figures.tokens, 1'000u);
  EXPECT_GT(figures.accepted, 0u);
}

// As in the tail of a rollout.
TEST_F(draft_models_in_the_field, sglang_28569_25512_25529_vllm_43682_batch_shrinks_to_one) {
  for (std::uint32_t i = 0; i < work.size(); ++i) {
    work[i].sampling.max_new_tokens = work[i].sampling.min_new_tokens = i == 3 ? 60 : 4 + i;
    work[i].sampling.stop_token_ids.clear();
  }
  const auto expected = plain();
  for (const auto& how : {chain_of_3, tree_of_12}) {
    model_draft_figures figures;
    expect_same(expected, run_with_model(weights, f32, work, all, mtp(), how, &figures), "alone");
    EXPECT_GT(figures.accepted, 0u);
  }
}

// It is cast when it is loaded.
TEST_F(draft_models_in_the_field, sglang_3431_5153_3824_float16_draft_of_a_bfloat16_target) {
  auto made = random_eagle3(config, 7);
  for (const auto& [name, held] : random_eagle3(config, 7).tensors)
    if (held.dtype == "F32")
      made.add_random(name, held.shape, 7, "F16");
  for (const auto profile : {f32, std::string_view{"cpu-bf16-v1"}}) {
    const auto target = load_weights(fixture_model("qwen3"), profile);
    const drafts_of drafts{made, draft_kind::eagle3, config, profile};
    EXPECT_EQ(drafts.draft().weights->arithmetic(), target->arithmetic());
    const auto expected = run_setting(target, profile, work, all);
    model_draft_figures figures;
    expect_same(expected, run_with_model(target, profile, work, all, drafts, chain_of_3, &figures),
                std::string{profile});
    EXPECT_GT(figures.accepted, 0u);
  }
}

// Drafts computed from what was released with the weights before.
TEST_F(draft_models_in_the_field, vllm_55013_embedding_and_head_after_a_weight_flip) {
  const temporary_directory directory;
  ASSERT_TRUE(write_random_model(directory.path(), config, 77, kernels::dtype::bf16));
  const auto next = load_weights(directory.path(), f32);
  const auto before = plain();
  const auto after = run_setting(next, f32, work, all);
  const auto drafts = mtp();
  // The engine that began with the new weights says what is drafted with them.
  model_draft_figures fresh;
  expect_same(after, run_with_model(next, f32, work, all, drafts, chain_of_3, &fresh), "fresh");
  std::vector<engine> engines;
  engines.emplace_back(make_device(weights, f32, all.device), all.limits);
  const auto by = drafts.make(engines[0].device().shape(), all.limits.batch_max, chain_of_3);
  engines[0].speculate(by);
  expect_same(before, run_rollout(work, engines, all.how), "before");
  const auto figures = by->figures();
  const auto source = checkpoint::open(directory.path());
  auto prepared = engines[0].device().prepare_weights(*source, {}, {});
  ASSERT_TRUE(prepared) << prepared.error().detail;
  ASSERT_TRUE(engines[0].use_weights(*prepared));
  expect_same(after, run_rollout(work, engines, all.how), "after");
  // What it learnt of acceptance differs, so that a few drafts may; embedding and head do not.
  EXPECT_NEAR(static_cast<double>(by->figures().accepted - figures.accepted),
              static_cast<double>(fresh.accepted), 0.1 * static_cast<double>(fresh.accepted) + 5);
}

// What was planned is what is verified.
TEST_F(draft_models_in_the_field, vllm_51510_as_many_tokens_are_verified_as_were_drafted) {
  for (auto& request : work)
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 40;
  std::vector<engine> engines;
  engines.emplace_back(make_device(weights, f32, all.device), all.limits);
  model_draft_options how = chain_of_3;
  how.survival_min = 0;
  const auto by = eagle().make(engines[0].device().shape(), all.limits.batch_max, how);
  engines[0].speculate(by);
  run_rollout(work, engines, all.how);
  const auto& stats = engines[0].stats();
  EXPECT_EQ(by->figures().tokens, stats.draft_tokens);
  EXPECT_EQ(by->figures().accepted, stats.accepted_tokens);
  EXPECT_EQ(by->figures().drafts, stats.verifications);
  // Three a draft, fewer only where a response ends within them.
  EXPECT_GE(stats.draft_tokens, 3 * stats.verifications - 3 * work.size());
}

// Named tensors `draft.*` change the drafter, with its target's or alone, and go back with them.
TEST_F(draft_models_in_the_field, draft_updated_with_and_without_its_target) {
  const temporary_directory of_target, of_draft;
  ASSERT_TRUE(write_random_model(of_target.path(), config, 77, kernels::dtype::bf16));
  random_eagle3(config, 8).write(of_draft.path());
  const auto target = checkpoint::open(of_target.path()), draft = checkpoint::open(of_draft.path());
  const auto before = plain();
  const auto after = run_setting(load_weights(of_target.path(), f32), f32, work, all);
  const auto drafts = eagle();
  auto device = make_device(weights, f32, all.device);
  const auto by = drafts.make(device->shape(), all.limits.batch_max, chain_of_3);
  std::vector<engine> engines;
  engines.emplace_back(with_draft_weights(std::move(device), by->model().device, {}), all.limits);
  auto& one = engines[0];
  one.speculate(by);
  const auto first_hash = by->device().weights_hash();
  const auto first = one.device().weights();
  expect_same(before, run_rollout(work, engines, all.how), "before");

  tensor_set alone{"update"}, both{"update"};
  for (const auto& t : by->device().weights()->tensors()) {
    auto view = *draft->tensor(t.name);
    view.name = "draft." + t.name;
    if (t.name != "fc.weight") { // which stays as it is
      ASSERT_TRUE(both.add(view, nullptr));
    }
    ASSERT_TRUE(alone.add(view, nullptr));
  }
  for (const auto& t : first->tensors())
    ASSERT_TRUE(both.add(*target->tensor(t.name), nullptr));
  const auto of_alone = one.device().prepare_weights(alone, first, {});
  ASSERT_TRUE(of_alone) << of_alone.error().detail;
  EXPECT_EQ((*of_alone)->hash(), first->hash()) << "a drafter is no part of what epochs agree on";
  ASSERT_TRUE(one.use_weights(*of_alone));
  const auto second_hash = by->device().weights_hash();
  EXPECT_NE(second_hash, first_hash);
  expect_same(before, run_rollout(work, engines, all.how), "another draft");

  const auto of_both = one.device().prepare_weights(both, first, {});
  ASSERT_TRUE(of_both) << of_both.error().detail;
  ASSERT_TRUE(one.use_weights(*of_both));
  EXPECT_NE(by->device().weights_hash(), first_hash);
  EXPECT_NE(by->device().weights_hash(), second_hash) << "fc is the first one's";
  expect_same(after, run_rollout(work, engines, all.how), "both");
  ASSERT_TRUE(one.use_weights(first));
  EXPECT_EQ(by->device().weights_hash(), first_hash);
  expect_same(before, run_rollout(work, engines, all.how), "back");

  tensor_set wrong{"update"};
  auto view = *draft->tensor("norm.weight");
  view.name = "draft.norms.weight";
  ASSERT_TRUE(wrong.add(view, nullptr));
  const auto refused = one.device().prepare_weights(wrong, first, {});
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().detail.find("norms.weight"), std::string::npos)
    << refused.error().detail;
}

// A context that a KV image brought is not the drafter's: it goes on with what it sees.
TEST_F(draft_models_in_the_field, response_that_came_with_its_kv) {
  auto request = work[1];
  request.sampling.max_new_tokens = request.sampling.min_new_tokens = 60;
  request.generate_max = 20;
  std::vector<engine> engines;
  std::vector<std::shared_ptr<model_drafter>> by;
  const auto drafts = eagle();
  for (int i = 0; i < 2; ++i) {
    engines.emplace_back(make_device(weights, f32, all.device), all.limits);
    by.push_back(drafts.make(engines.back().device().shape(), 16, chain_of_3));
    engines.back().speculate(by.back());
  }
  work = {request};
  const auto expected = plain();
  expect_same(expected, run_rollout(work, engines, {20, true, between_chunks::move}), "moved");
  EXPECT_GT(by[0]->figures().tokens, 0u);
  EXPECT_GT(by[1]->figures().tokens, 0u) << "from its second step on";
  EXPECT_EQ(by[1]->figures().restarts, 0u);
}

// An MTP layer of the model's own files is updated under its own names, without the model.
TEST_F(draft_models_in_the_field, native_layer_updated_alone) {
  const auto mimo = load_weights(fixture_model("mimo"), f32);
  const auto vocabulary = static_cast<std::uint32_t>(mimo->config().vocabulary);
  const auto own_work = mixed_rollout(vocabulary, 12, 60, 5);
  const auto expected = run_setting(mimo, f32, own_work, all);
  const drafts_of own{fixture_model("mimo"), draft_kind::mtp, mimo->config(), f32};
  auto device = make_device(mimo, f32, all.device);
  const auto by = own.make(device->shape(), all.limits.batch_max, chain_of_3);
  const auto layer = by->model().layer_prefix;
  ASSERT_FALSE(layer.empty());
  std::vector<engine> engines;
  engines.emplace_back(with_draft_weights(std::move(device), by->model().device, layer),
                       all.limits);
  auto& one = engines[0];
  one.speculate(by);
  const auto model_hash = one.device().weights_hash();
  const auto draft_hash = by->device().weights_hash();
  const auto first = one.device().weights();

  const auto files = checkpoint::open(fixture_model("mimo"));
  ASSERT_TRUE(files);
  tensor_set layer_alone{"update"}, model_alone{"update"};
  for (const auto name : files->names())
    if (!name.starts_with(layer)) {
      ASSERT_TRUE(model_alone.add(*files->tensor(name), nullptr));
    }
  const auto zeros = std::make_shared<std::vector<std::byte>>();
  for (const auto& t : by->device().weights()->tensors())
    if (t.name.starts_with(layer) && t.name.ends_with("down_proj.weight")) {
      auto view = *files->tensor(t.name);
      zeros->resize(view.bytes.size());
      view.bytes = *zeros;
      view.hash.reset();
      ASSERT_TRUE(layer_alone.add(view, zeros));
    }
  ASSERT_EQ(layer_alone.names().size(), 1u);

  const auto changed = one.device().prepare_weights(layer_alone, first, {});
  ASSERT_TRUE(changed) << changed.error().detail;
  EXPECT_EQ((*changed)->hash(), model_hash) << "no part of what epochs agree on";
  ASSERT_TRUE(one.use_weights(*changed));
  const auto zero_hash = by->device().weights_hash();
  EXPECT_NE(zero_hash, draft_hash);
  expect_same(expected, run_rollout(own_work, engines, all.how), "its layer is another");
  EXPECT_GT(by->figures().tokens, 0u);
  // The model without its layer leaves the layer as it is.
  const auto model = one.device().prepare_weights(model_alone, *changed, {});
  ASSERT_TRUE(model) << model.error().detail;
  ASSERT_TRUE(one.use_weights(*model));
  EXPECT_EQ(one.device().weights_hash(), model_hash);
  EXPECT_EQ(by->device().weights_hash(), zero_hash);
  ASSERT_TRUE(one.use_weights(first));
  EXPECT_EQ(by->device().weights_hash(), draft_hash);
}

// A pool that is shared may have more threads than the options say: each needs scratch of its own.
// With a vocabulary this wide and so many, whoever has none writes far behind what there is.
TEST_F(draft_models_in_the_field, pool_of_threads_shared_with_the_target) {
  auto wide = config;
  wide.vocabulary = 20'000;
  const temporary_directory directory;
  ASSERT_TRUE(write_random_model(directory.path(), wide, 5, kernels::dtype::bf16));
  const auto target = load_weights(directory.path(), f32);
  work = mixed_rollout(20'000, 12, 20, 5);
  for (auto& request : work)
    request.sampling.top_k = 20; // which takes scratch
  const auto expected = run_setting(target, f32, work, all);
  const drafts_of drafts{random_mtp(wide, 7), draft_kind::mtp, wide, f32};
  const auto pool = std::make_shared<thread_pool>(64);
  auto options = all.device;
  options.pool = pool;
  ASSERT_LT(options.threads, pool->size());
  std::vector<engine> engines;
  auto device = make_device(target, f32, options);
  const auto by = drafts.make(device->shape(), all.limits.batch_max, tree_of_12, 1, pool);
  engines.emplace_back(with_draft_weights(std::move(device), by->model().device, {}), all.limits);
  engines[0].speculate(by);
  expect_same(expected, run_rollout(work, engines, all.how), "many threads");
  EXPECT_GT(by->figures().tokens, 0u);
}

// A chunk that is refused for want of blocks has dropped its KV: what drafts for it is dropped too.
TEST_F(draft_models_in_the_field, chunk_that_finds_no_room_leaves_no_context) {
  for (auto& request : work)
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 60;
  work = {work[1], work[2]};
  const auto expected = plain();
  setting small{"small", with_rows_for_drafts(device_of(1, 8, 16)), {16, 128, 0}, {}};
  std::vector<engine> engines;
  engines.emplace_back(make_device(weights, f32, small.device), small.limits);
  auto& one = engines[0];
  const auto by = eagle().make(one.device().shape(), 16, chain_of_3);
  one.speculate(by);
  auto first = work[0];
  first.generate_max = 8;
  ASSERT_TRUE(one.admit(first));
  while (one.has_work())
    for (const auto& r : one.step())
      first.tokens.insert(first.tokens.end(), r.tokens.begin(), r.tokens.end());
  ASSERT_TRUE(one.parked(first.response));
  ASSERT_EQ(by->figures().contexts, 1u);
  auto second = work[1];
  second.generate_max = 60;
  ASSERT_TRUE(one.admit(second));
  first.generate_max = 52;
  const auto refused = one.admit(first);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::out_of_kv_blocks);
  EXPECT_FALSE(one.parked(first.response));
  EXPECT_EQ(by->figures().contexts, 0u);
  while (one.has_work())
    one.step();
  ASSERT_TRUE(one.admit(first));
  std::vector<token_id> rest;
  while (one.has_work())
    for (const auto& r : one.step())
      rest.assign(r.tokens.begin(), r.tokens.end());
  const auto& whole = expected.at(first.response.value).tokens;
  EXPECT_EQ(rest, std::vector<token_id>(whole.begin() + 8, whole.end()));
  EXPECT_EQ(by->figures().contexts, 0u);
}

// Little or negative gain: where rows or passes are dear, a model must cost nothing. It is asked
// again, but rarely.
TEST_F(draft_models_in_the_field, sglang_6949_11948_5502_model_that_does_not_pay_is_not_run) {
  const auto expected = plain();
  const auto drafts = eagle();
  for (const double pass_s : {1e-6, 100.0}) {
    std::vector<engine> engines;
    engines.emplace_back(make_device(weights, f32, all.device), all.limits);
    const auto model = drafts.make(engines[0].device().shape(), 16, chain_of_3);
    const auto by = std::make_shared<speculator>(speculation_options{.how = speculation::auto_},
                                                 step_costs{{{1, 1e-3}, {256, 2e-3}}, {0, 0}});
    by->consider(model, step_costs{{{1, pass_s}, {256, pass_s}}, {0, 0}});
    engines[0].speculate(by);
    expect_same(expected, run_rollout(work, engines, all.how), "auto");
    EXPECT_EQ(model->figures().passes > 0, pass_s < 1);
    EXPECT_EQ(model->figures().contexts, 0u) << "what was kept of them is forgotten too";
  }
}

// A model that has not paid for a while is shown nothing, so that keeping states costs nothing.
// Here it pays as soon as few responses are left, and then begins in the middle of them.
TEST_F(draft_models_in_the_field, model_that_rests_sees_nothing_until_it_is_to_draft) {
  for (auto& request : work) {
    const std::uint32_t tokens = request.response == work[0].response ? 90 : 40;
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = tokens;
    request.generate_max = tokens;
  }
  const auto expected = plain();
  std::vector<engine> engines;
  engines.emplace_back(make_device(weights, f32, all.device), all.limits);
  const auto model = eagle().make(engines[0].device().shape(), 16, chain_of_3);
  const step_costs many_rows_are_dear{{{1, 1e-3}, {6, 1e-3}, {8, 1}, {256, 30}}, {0, 0}};
  const auto by = std::make_shared<speculator>(speculation_options{.how = speculation::auto_},
                                               many_rows_are_dear);
  by->consider(model, step_costs{{{1, 1e-6}, {256, 1e-6}}, {0, 0}});
  engines[0].speculate(by);
  auto& one = engines[0];
  for (const auto& request : work)
    ASSERT_TRUE(one.admit(request));
  std::map<std::uint64_t, std::vector<token_id>> written;
  std::uint32_t blind = 0;  // steps
  std::uint64_t passes = 0; // before it rested
  while (one.has_work()) {
    for (const auto& r : one.step())
      written[r.response.value].assign(r.tokens.begin(), r.tokens.end());
    if (by->sees())
      continue;
    passes = blind++ == 0 ? model->figures().passes : passes;
    EXPECT_EQ(model->figures().passes, passes);
    EXPECT_EQ(model->figures().contexts, 0u);
  }
  EXPECT_GT(blind, 10u);
  EXPECT_GT(model->figures().passes, passes) << "it drafted when few were left";
  for (const auto& [id, response] : expected)
    EXPECT_EQ(written.at(id), response.tokens) << "response " << id;
}

// What makes a draft right at temperature 1 is the noise that it shares with its target.
TEST_F(draft_models_in_the_field, shared_noise_accepts_more_than_independent_noise) {
  for (auto& request : work) {
    request.sampling.temperature = 1;
    request.sampling.top_p = 1;
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 60;
  }
  std::map<draft_noise, double> rate;
  for (const auto noise : {draft_noise::shared, draft_noise::independent, draft_noise::none}) {
    model_draft_options how = chain_of_3;
    how.noise = noise;
    how.survival_min = 0;
    model_draft_figures figures;
    run_with_model(weights, f32, work, all, mtp(), how, &figures);
    rate[noise] = static_cast<double>(figures.accepted) / static_cast<double>(figures.tokens);
  }
  EXPECT_GT(rate[draft_noise::shared], 3 * rate[draft_noise::independent]);
  EXPECT_GT(rate[draft_noise::shared], rate[draft_noise::none]);
}

} // namespace

} // namespace rollcast::test
