// Goal: every published layout of a drafter loads, and whatever is none is refused by one line that
// names it.
// Method: a random head and a random MTP layer in memory, renamed or spoilt in one place.

#include "engine/model/draft_model.hpp"
#include "tests/support/draft_checkpoint.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/support/tiny_model.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace rollcast::test {

namespace {

const model_config target = [] {
  auto config = tiny_config(architecture::qwen3);
  config.layers = 6;
  return config;
}();

result<draft_model> load(const draft_checkpoint& made, draft_kind kind,
                         const model_config& of = target) {
  const temporary_directory directory;
  made.write(directory.path());
  return load_draft(directory.path(), kind, of, kernels::arithmetic::f32);
}

void expect_refused(const result<draft_model>& got, const std::vector<std::string>& words) {
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().detail.find('\n'), std::string::npos);
  for (const auto& word : words)
    EXPECT_NE(got.error().detail.find(word), std::string::npos)
      << "'" << word << "' is not in: " << got.error().detail;
}

TEST(load_draft, reads_an_eagle3_head_as_specforge_writes_it) {
  const auto got = load(random_eagle3(target, 1), draft_kind::eagle3);
  ASSERT_TRUE(got) << got.error().detail;
  const auto& config = got->weights->config();
  EXPECT_EQ(config.draft.kind, draft_kind::eagle3);
  EXPECT_EQ(config.draft.target_layers, (std::vector<std::uint32_t>{0, 3, 5}));
  EXPECT_EQ(config.vocabulary, 100u);
  EXPECT_EQ(config.layers, 1u);
  EXPECT_EQ(got->target_ids.size(), 100u);
  EXPECT_EQ(got->target_ids[0], 0);
  EXPECT_EQ(got->target_ids[99], 198);
  EXPECT_EQ(got->weights->lm_head().n, 100u);
  EXPECT_EQ(got->weights->draft().fuse.k, 3 * target.hidden);
  EXPECT_EQ(got->weights->layers().front().qkv.k, 2 * target.hidden);
  EXPECT_TRUE(got->weights->embedding().bytes.empty()) << "it is the target's";
}

TEST(load_draft, reads_an_eagle3_head_with_the_prefixes_in_circulation) {
  for (const char* layer : {"layers.0.", "model.layers.0.", "model.midlayer."}) {
    auto made = random_eagle3(target, 1);
    made.rename("midlayer.", layer);
    if (std::string{layer}.starts_with("model.")) {
      made.rename("fc.", "model.fc.");
      made.rename("norm.", "model.norm.");
    }
    const auto got = load(made, draft_kind::eagle3);
    EXPECT_TRUE(got) << layer << ": " << got.error().detail;
  }
}

TEST(load_draft, takes_the_usual_layers_where_an_eagle3_head_lists_none) {
  auto made = random_eagle3(target, 1);
  made.config.erase("eagle_config");
  made.config.erase("rope_theta"); // as in the published head of Llama-3.1-8B
  const auto got = load(made, draft_kind::eagle3);
  ASSERT_TRUE(got) << got.error().detail;
  // Inputs of layers 2, 3 and 3 of 6: the outputs of those before.
  EXPECT_EQ(got->weights->config().draft.target_layers, (std::vector<std::uint32_t>{1, 2, 2}));
  EXPECT_EQ(got->weights->config().rope.theta, 10000.0);
  auto small = target;
  small.layers = 4;
  expect_refused(load(made, draft_kind::eagle3, small), {"eagle_aux_hidden_state_layer_ids"});
}

TEST(load_draft, takes_an_embedding_and_a_whole_vocabulary_of_the_heads_own) {
  auto made = random_eagle3(target, 1);
  made.config["draft_vocab_size"] = nullptr;
  made.tensors.erase("d2t");
  made.tensors.erase("t2d");
  made.tensors.erase("lm_head.weight");
  made.add_random("embed_tokens.weight", {target.vocabulary, target.hidden}, 3);
  const auto got = load(made, draft_kind::eagle3);
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_TRUE(got->target_ids.empty());
  EXPECT_EQ(got->weights->lm_head().n, 0u) << "it is the target's";
  EXPECT_EQ(got->weights->embedding().shape[0], target.vocabulary);
}

// sglang #21272: an EAGLE-3 head read as EAGLE skips fc, and accepts nothing. `auto` takes for an
// MTP layer whatever is no EAGLE-3 head.
TEST(load_draft, refuses_eagle_1_and_2_by_their_class_whatever_is_asked_for) {
  auto made = random_eagle3(target, 1);
  for (const char* name : {"LlamaForCausalLMEagle", "Qwen2ForCausalLMEagle",
                           "EagleLlamaForCausalLM", "EagleDeepSeekMTPModel"}) {
    made.config["architectures"] = {name};
    for (const auto kind : {draft_kind::eagle3, draft_kind::mtp})
      expect_refused(load(made, kind), {"EAGLE-1 or EAGLE-2", name, "LlamaForCausalLMEagle3"});
  }
}

// As published: a class like any model's, one layer under no prefix, and fc.
TEST(load_draft, refuses_eagle_1_and_2_by_their_layout_whatever_is_asked_for) {
  for (const char* name : {"LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM"}) {
    draft_checkpoint made;
    made.config = random_mtp(target, 1).config;
    made.config["architectures"] = {name};
    made.config["num_hidden_layers"] = 1;
    made.config.erase("num_nextn_predict_layers");
    made.add_random("fc.weight", {target.hidden, 2 * target.hidden}, 1);
    made.add_random("layers.0.self_attn.q_proj.weight", {128, target.hidden}, 1);
    for (const auto kind : {draft_kind::eagle3, draft_kind::mtp})
      expect_refused(load(made, kind), {"EAGLE-1 or EAGLE-2", name, "LlamaForCausalLMEagle3"});
  }
}

TEST(load_draft, refuses_eagle_1_and_2_that_call_themselves_eagle_3) {
  auto made = random_eagle3(target, 1);
  made.add_random("fc.weight", {target.hidden, 2 * target.hidden}, 1);
  expect_refused(load(made, draft_kind::eagle3), {"fc.weight", "EAGLE-1 and EAGLE-2"});
}

// sglang #36528: without a path the target was loaded as its own draft.
TEST(load_draft, refuses_a_target_as_its_own_eagle3_head) {
  const temporary_directory directory;
  write_tiny_model(directory.path(), architecture::qwen3);
  expect_refused(load_draft(directory.path(), draft_kind::eagle3, target, kernels::arithmetic::f32),
                 {"Qwen3ForCausalLM", "not an EAGLE-3 head", "--draft-model"});
  expect_refused(load_draft(directory.path(), draft_kind::mtp, target, kernels::arithmetic::f32),
                 {"Qwen3ForCausalLM", "no MTP layer"});
}

TEST(load_draft, refuses_missing_and_unknown_tensors_by_name) {
  auto made = random_eagle3(target, 1);
  made.tensors.erase("midlayer.mlp.up_proj.weight");
  made.add_random("fc_norm.0.weight", {target.hidden}, 1);
  expect_refused(load(made, draft_kind::eagle3),
                 {"LlamaForCausalLMEagle3", "1 tensor missing", "midlayer.mlp.up_proj.weight",
                  "1 tensor unknown", "fc_norm.0.weight"});
  auto mtp = random_mtp(target, 1);
  mtp.rename("model.mtp_layers.0.final_layernorm", "model.mtp_layers.0.last_layernorm");
  expect_refused(load(mtp, draft_kind::mtp),
                 {"model.mtp_layers.0.final_layernorm.weight", "last_layernorm"});
}

TEST(load_draft, refuses_what_is_of_another_model) {
  auto made = random_eagle3(target, 1);
  made.config["vocab_size"] = 300;
  expect_refused(load(made, draft_kind::eagle3), {"vocab_size is 300", "200"});
  auto wide = target;
  wide.hidden = 96;
  expect_refused(load(random_eagle3(target, 1), draft_kind::eagle3, wide),
                 {"hidden_size is 64", "96"});
  expect_refused(load(random_mtp(target, 1), draft_kind::mtp, wide), {"hidden_size is 64", "96"});
  auto mtp = random_mtp(target, 1);
  mtp.config["vocab_size"] = 300;
  expect_refused(load(mtp, draft_kind::mtp), {"vocab_size is 300", "200"});
  made = random_eagle3(target, 1);
  made.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = {0, 3, 6};
  expect_refused(load(made, draft_kind::eagle3), {"three layers from 0 to 5"});
  made.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = {0, 3};
  expect_refused(load(made, draft_kind::eagle3), {"three layers from 0 to 5"});
  expect_refused(load(random_eagle3(target, 1), draft_kind::mtp), {"--speculate eagle3"});
}

TEST(load_draft, refuses_vocabulary_tables_that_cannot_be) {
  const auto with_d2t = [](std::size_t at, std::int64_t value) {
    auto made = random_eagle3(target, 1);
    std::memcpy(&made.tensors["d2t"].bytes[at * sizeof value], &value, sizeof value);
    return made;
  };
  expect_refused(load(with_d2t(99, 101), draft_kind::eagle3), {"d2t[99] = 101"});
  expect_refused(load(with_d2t(3, -4), draft_kind::eagle3), {"d2t[3] = -4"});
  // Ids in place of differences, as one converter wrote them: two of them meet.
  expect_refused(load(with_d2t(3, 5), draft_kind::eagle3), {"d2t[4]", "each once"});
  expect_refused(load(with_d2t(99, 100), draft_kind::eagle3), {"t2d[198] contradicts d2t"});
  auto made = random_eagle3(target, 1);
  made.tensors.erase("d2t");
  expect_refused(load(made, draft_kind::eagle3), {"d2t", "missing"});
  made = random_eagle3(target, 1);
  made.tensors["d2t"].dtype = "U64";
  expect_refused(load(made, draft_kind::eagle3), {"d2t", "U64", "I64"});
}

TEST(load_draft, reads_an_mtp_layer_with_and_without_biases) {
  auto made = random_mtp(target, 1);
  auto got = load(made, draft_kind::mtp);
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_TRUE(got->weights->config().draft.mimo);
  EXPECT_TRUE(got->weights->layers().front().qkv_bias.empty());
  EXPECT_EQ(got->weights->lm_head().n, 0u);
  const std::string attention = "model.mtp_layers.0.self_attn.";
  made.add_random(attention + "q_proj.bias", {128}, 1);
  made.add_random(attention + "k_proj.bias", {64}, 1);
  made.add_random(attention + "v_proj.bias", {64}, 1);
  made.config["attention_bias"] = false; // copied from the target's
  got = load(made, draft_kind::mtp);
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_EQ(got->weights->layers().front().qkv_bias.size(), 256u);
}

TEST(load_draft, reads_the_mtp_layer_of_a_whole_model) {
  for (const auto family :
       {architecture::mimo, architecture::glm4_moe, architecture::deepseek_v3}) {
    const temporary_directory directory;
    write_tiny_model(directory.path(), family);
    const auto of = tiny_config(family);
    const auto got = load_draft(directory.path(), draft_kind::mtp, of, kernels::arithmetic::f32);
    ASSERT_TRUE(got) << to_string(family) << ": " << got.error().detail;
    const auto& config = got->weights->config();
    EXPECT_EQ(config.layers, 1u);
    EXPECT_EQ(config.draft.mimo, family == architecture::mimo);
    EXPECT_EQ(config.is_sparse(0), family != architecture::mimo) << to_string(family);
    EXPECT_EQ(config.draft.state_width, of.hidden);
    EXPECT_EQ(got->weights->lm_head().n, 0u) << "embedding and head are the target's";
    EXPECT_TRUE(got->weights->embedding().bytes.empty());
  }
}

} // namespace

} // namespace rollcast::test
