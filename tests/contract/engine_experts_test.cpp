// Goal: the ids of experts that come with a response are a function of its request alone, and they
// are the experts that its tokens were sent to.
// Method: the mixed rollout asks for ids from various positions. They are compared with those of
// single tokens fed to a device one by one, in every setting of the engine, with drafts right and
// wrong; and on a device, with a router written anew in double precision over the tensors of the
// checkpoint.

#include "engine/backend/activation_observer.hpp"
#include "engine/model/checkpoint.hpp"
#include "kernels/elementwise.hpp"
#include "tests/contract/engine_settings.hpp"
#include "tests/contract/knowing_drafter.hpp"
#include "tests/contract/model_drafts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::test {

namespace {

const std::vector<std::string> sparse_families{"qwen3_moe", "glm4_moe", "deepseek_v3", "moonlight",
                                               "kimi_k2"};

/// The ids of all positions of one sequence, each fed in a pass of its own.
std::vector<std::byte> ids_of(backend& device, std::span<const token_id> tokens) {
  std::vector<std::byte> all;
  std::vector<std::uint32_t> blocks(device.shape().kv_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  for (std::uint32_t at = 0; at < tokens.size(); ++at) {
    const kernels::row_place place{at, blocks[at / device.shape().block_tokens]};
    const kernels::attention_sequence sequence{blocks.data(), 0, 1, at};
    forward_rows row{tokens.subspan(at, 1), {&place, 1}, {&sequence, 1}, {}};
    row.keep_experts = true;
    device.forward(row);
    const auto ids = device.experts();
    EXPECT_EQ(ids.size(), device.shape().experts.position_bytes());
    all.insert(all.end(), ids.begin(), ids.end());
  }
  return all;
}

class engine_experts : public engine_contract {
protected:
  engine_experts() {
    for (std::size_t i = 0; i < work.size(); ++i) {
      const auto prompt = work[i].prompt_tokens;
      work[i].experts_from =
        std::vector<std::uint32_t>{0, prompt, prompt / 2, prompt + 9, 0, 1'000}[i % 6];
    }
  }

  /// What must come with each response, given the tokens that it has.
  std::map<std::uint64_t, std::vector<std::byte>>
  direct(const std::map<std::uint64_t, finished_response>& done) {
    std::map<std::uint64_t, std::vector<std::byte>> out;
    const auto device = make_device(weights, profile(), device_of(1, 64, 16));
    const auto bytes = device->shape().experts.position_bytes();
    for (const auto& request : work) {
      const auto& r = done.at(request.response.value);
      auto fed = r.prompt;
      fed.insert(fed.end(), r.tokens.begin(), r.tokens.end() - 1);
      auto ids = ids_of(*device, fed);
      const auto from = std::min<std::size_t>(*request.experts_from * bytes, ids.size());
      ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(from));
      out[request.response.value] = std::move(ids);
    }
    return out;
  }

  static void expect_ids(const std::map<std::uint64_t, std::vector<std::byte>>& expected,
                         const std::map<std::uint64_t, finished_response>& got,
                         const std::string& what) {
    for (const auto& [id, ids] : expected)
      EXPECT_EQ(got.at(id).experts, ids) << what << ", response " << id;
  }
};

/// KV that is moved before the first token was reported is computed again, because its ids stay
/// behind. So a prompt must come through between two cuts.
std::vector<setting> settings_with_ids() {
  auto out = settings;
  for (auto& s : out)
    if (s.how.cut_every > 0 && s.how.kv == between_chunks::move) {
      s.how.cut_every = 12;
    }
  return out;
}

TEST_P(engine_experts, are_those_of_single_tokens_however_a_response_is_scheduled) {
  const auto first = run_setting(weights, profile(), work, plain);
  const auto expected = direct(first);
  expect_ids(expected, first, "plain");
  for (const auto& s : settings_with_ids()) {
    const auto got = run_setting(weights, profile(), work, s);
    for (const auto& [id, response] : first)
      EXPECT_TRUE(same_bits(response, got.at(id))) << s.name << ", response " << id;
    expect_ids(expected, got, s.name);
  }
}

TEST_P(engine_experts, of_rejected_drafts_do_not_count) {
  const auto first = run_setting(weights, profile(), work, plain);
  const auto expected = direct(first);
  for (const auto& s : settings_with_ids())
    for (const auto& how : {knowing_options{30, 9, 0}, knowing_options{30, 24, 40}}) {
      auto by = std::make_shared<knowing_drafter>(first, how);
      const auto got = run_setting(weights, profile(), work, s, by);
      expect_ids(expected, got, s.name + ", drafts of " + std::to_string(how.nodes_max));
      EXPECT_GT(by->accepted, 0u) << s.name;
      EXPECT_GT(by->rejected, 0u) << s.name;
      EXPECT_EQ(by->branches > 0, how.branch_percent > 0) << s.name;
    }
}

TEST_P(engine_experts, of_a_model_whose_drafter_is_a_model_are_the_same) {
  const auto first = run_setting(weights, profile(), work, plain);
  const drafts_of mtp{random_mtp(weights->config(), 7), draft_kind::mtp, weights->config(),
                      profile()};
  for (const auto& how : {chain_of_3, tree_of_12}) {
    model_draft_figures figures;
    expect_same(first, run_with_model(weights, profile(), work, settings[1], mtp, how, &figures),
                std::to_string(how.tokens) + " tokens");
    EXPECT_GT(figures.accepted, 0u);
  }
}

TEST_P(engine_experts, of_a_prompt_that_was_cut_stay_here_and_are_made_again_elsewhere) {
  auto request = work[0];
  request.tokens.assign(100, 3);
  for (std::size_t i = 0; i < request.tokens.size(); ++i)
    request.tokens[i] = static_cast<token_id>((5 * i + 1) % weights->config().vocabulary);
  request.prompt_tokens = 100;
  request.generate_max = request.sampling.max_new_tokens = 6;
  request.sampling.min_new_tokens = 0;
  request.experts_from = 10;
  work = {request};
  const auto first = run_setting(weights, profile(), work, plain);
  const auto expected = direct(first);
  for (const bool moves : {false, true}) {
    std::vector<engine> engines;
    for (int i = 0; i < 2; ++i)
      engines.emplace_back(make_device(weights, profile(), device_of(1, 64, 16)),
                           engine_limits{8, 16, 0});
    ASSERT_TRUE(engines[0].admit(request));
    for (int i = 0; i < 3; ++i)
      engines[0].step();
    const auto cut = engines[0].cut();
    ASSERT_EQ(cut.size(), 1u);
    EXPECT_TRUE(cut[0].tokens.empty());
    EXPECT_TRUE(cut[0].experts.empty());
    auto& next = engines[moves ? 1 : 0];
    if (moves) {
      kv_bytes image;
      const auto manifest = engines[0].export_kv(request.response, image);
      ASSERT_TRUE(manifest);
      ASSERT_TRUE(next.import_kv(*manifest, image));
    }
    ASSERT_TRUE(next.admit(request));
    std::vector<std::byte> ids;
    while (next.has_work())
      for (const auto& r : next.step())
        ids.insert(ids.end(), r.experts.begin(), r.experts.end());
    EXPECT_EQ(ids, expected.at(request.response.value)) << (moves ? "moved" : "here");
    EXPECT_EQ(next.stats().recomputed_tokens, moves ? 48u : 0u);
  }
}

TEST_P(engine_experts, that_nobody_asks_for_are_not_kept) {
  for (auto& request : work)
    request.experts_from.reset();
  const auto done = run_setting(weights, profile(), work, plain);
  for (const auto& [id, response] : done)
    EXPECT_TRUE(response.experts.empty()) << "response " << id;
}

INSTANTIATE_TEST_SUITE_P(families, engine_experts,
                         ::testing::Combine(::testing::ValuesIn(sparse_families),
                                            ::testing::Values("cpu-f32-v1", "cpu-bf16-v1")),
                         name_of_model);

TEST(experts_of_a_dense_model, are_refused) {
  const auto weights = load_weights(fixture_model("qwen3"), "cpu-f32-v1");
  engine dense{make_device(weights, "cpu-f32-v1", device_of(1, 64, 16)), {}};
  auto request = mixed_rollout(100, 1, 10, 1)[0];
  request.generate_max = 4;
  request.experts_from = 0;
  const auto refused = dense.admit(request);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::bad_config);
  EXPECT_NE(refused.error().detail.find("the model has no experts"), std::string::npos);
  EXPECT_EQ(dense.kv().free, 64u);
}

// -- against a router written anew ----------------------------------------------------------------

/// Rows that enter the FFN of each layer.
class ffn_inputs final : public activation_observer {
public:
  void see(const observed_rows& rows) override {
    if (rows.what != operation::post_norm)
      return;
    auto& to = inputs[rows.layer];
    for (std::size_t row = 0; row < rows.positions.size(); ++row)
      to.emplace_back(rows.values + row * rows.stride,
                      rows.values + row * rows.stride + rows.columns);
  }
  std::map<std::uint32_t, std::vector<std::vector<float>>> inputs; ///< By layer, of each row.
};

std::vector<float> floats_of(const checkpoint& files, const std::string& name) {
  const auto tensor = files.tensor(name);
  EXPECT_TRUE(tensor) << tensor.error().detail;
  const auto count = std::accumulate(tensor->shape.begin(), tensor->shape.end(), std::size_t{1},
                                     std::multiplies<>{});
  std::vector<float> out(count);
  kernels::widen_row_cpu(tensor->bytes.data(), tensor->type, count, out.data());
  return out;
}

/// What experts are chosen by, of one row: the published formula, in double. Those of groups that
/// are left out have -1.
std::vector<double> choice_of(const expert_config& how, const std::vector<float>& x,
                              const std::vector<float>& router, const std::vector<float>& bias) {
  std::vector<double> choice(how.count);
  for (std::size_t e = 0; e < how.count; ++e) {
    double logit = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      logit += static_cast<double>(x[i]) * static_cast<double>(router[e * x.size() + i]);
    choice[e] = how.score == kernels::router_score::sigmoid ? 1 / (1 + std::exp(-logit)) : logit;
    if (!bias.empty())
      choice[e] += static_cast<double>(bias[e]);
  }
  if (how.groups == 1)
    return choice;
  const auto size = how.count / how.groups;
  std::vector<std::pair<double, std::size_t>> groups;
  for (std::size_t g = 0; g < how.groups; ++g) {
    std::vector<double> own(choice.begin() + static_cast<std::ptrdiff_t>(g * size),
                            choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(own.rbegin(), own.rend());
    groups.emplace_back(own[0] + own[1], g);
  }
  std::sort(groups.rbegin(), groups.rend());
  for (std::size_t i = how.groups_kept; i < how.groups; ++i)
    std::fill_n(choice.begin() + static_cast<std::ptrdiff_t>(groups[i].second * size), size, -1);
  return choice;
}

TEST(routed_experts, are_what_the_published_router_chooses_of_the_tensors_of_the_checkpoint) {
  for (const auto& family : sparse_families) {
    const auto weights = load_weights(fixture_model(family), "cpu-f32-v1");
    const auto files = checkpoint::open(fixture_model(family));
    ASSERT_TRUE(files);
    const auto& config = weights->config();
    const auto& how = config.experts;
    const auto device = make_device(weights, "cpu-f32-v1", device_of(1, 4, 16));
    ffn_inputs seen;
    ASSERT_TRUE(device->observe(&seen));
    std::vector<token_id> tokens(40);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<token_id>((7 * i + 3) % config.vocabulary);
    const auto ids = ids_of(*device, tokens);
    const auto layout = device->shape().experts;
    EXPECT_EQ(layout.layers, config.layers - how.dense_layers.size()) << family;
    EXPECT_EQ(layout.per_token, how.per_token);
    EXPECT_EQ(layout.id_bytes, 1u);
    std::size_t sparse = 0;
    for (std::uint32_t layer = 0; layer < config.layers; ++layer) {
      if (!config.is_sparse(layer))
        continue;
      const auto gate = "model.layers." + std::to_string(layer) + ".mlp.gate.";
      const auto router = floats_of(*files, gate + "weight");
      const auto bias = how.choice_bias ? floats_of(*files, gate + "e_score_correction_bias")
                                        : std::vector<float>{};
      for (std::size_t row = 0; row < tokens.size(); ++row) {
        const auto choice = choice_of(how, seen.inputs.at(layer)[row], router, bias);
        auto best = choice;
        std::sort(best.rbegin(), best.rend());
        for (std::size_t slot = 0; slot < how.per_token; ++slot) {
          const auto id = std::to_integer<std::size_t>(
            ids[row * layout.position_bytes() + sparse * how.per_token + slot]);
          ASSERT_LT(id, how.count);
          EXPECT_NEAR(choice[id], best[slot], 1e-5)
            << family << ", layer " << layer << ", row " << row << ", slot " << slot;
        }
      }
      ++sparse;
    }
  }
}

} // namespace

} // namespace rollcast::test
