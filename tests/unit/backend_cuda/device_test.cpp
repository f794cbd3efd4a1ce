// Goal: what a GPU's device does besides a pass: weights are prepared beside those in use, whole or
// over them, and exchanged without a trace of the others, with graphs too; KV images go out and in
// unchanged, whatever the block size; what cannot be is refused in one line with the numbers.
// Method: the emulated device, its passes driven by hand.

#include "engine/backend/cuda_parts.hpp"
#include "engine/backend/forwarding_backend.hpp"
#include "engine/base/prng.hpp"
#include "tests/unit/backend_cuda/devices.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace rollcast::test {
namespace {

namespace gpu = kernels::cuda;

/// Runs tokens of one sequence from `position` on, in one pass; returns the last row's logits.
std::vector<float> pass(backend& device, std::span<const token_id> tokens,
                        std::span<const std::uint32_t> blocks, std::uint32_t position) {
  std::vector<kernels::row_place> places;
  for (std::uint32_t i = 0; i < tokens.size(); ++i)
    places.push_back({position + i, blocks[(position + i) / device.shape().block_tokens]});
  const auto rows = static_cast<std::uint32_t>(tokens.size());
  const kernels::attention_sequence sequence{blocks.data(), 0, rows, position};
  const std::uint32_t last = rows - 1;
  device.forward({tokens, places, {&sequence, 1}, {&last, 1}});
  const auto logits = device.logits();
  return {logits.begin(), logits.end()};
}

std::vector<token_id> some_tokens(std::size_t count, std::uint64_t seed = 9) {
  prng random{seed};
  std::vector<token_id> out;
  for (std::size_t i = 0; i < count; ++i)
    out.push_back(static_cast<token_id>(random.below(99)));
  return out;
}

const std::vector<std::uint32_t> first_blocks{0, 1, 2, 3, 4, 5};

TEST(cuda_weights, are_those_of_the_cpu_by_hash) {
  for (const auto type : {kernels::dtype::bf16, kernels::dtype::f32, kernels::dtype::f16}) {
    const small_model model{architecture::qwen2, 1, type};
    EXPECT_EQ(model.cuda(small_options())->weights_hash(),
              model.cpu("cpu-bf16-v1")->weights_hash());
  }
}

TEST(cuda_weights, take_turns_and_leave_no_trace_in_passes_or_graphs) {
  const small_model first{architecture::qwen3, 1};
  const small_model second{architecture::qwen3, 2};
  const auto tokens = some_tokens(3);
  const auto of = [&](backend& device) { return pass(device, tokens, first_blocks, 0); };
  const auto one = of(*first.cuda(small_options()));
  const auto two = of(*second.cuda(small_options()));
  ASSERT_NE(one, two);
  const auto device = first.cuda(small_options());
  const auto before = device->weights();
  const auto after = device->prepare_weights(second.tensors(), nullptr, {.threads = 3});
  ASSERT_TRUE(after) << after.error().detail;
  for (int turn = 0; turn < 3; ++turn) { // the second pass of a shape is a graph
    EXPECT_EQ(of(*device), one) << turn;
    EXPECT_EQ(of(*device), one) << turn;
    device->use_weights(*after);
    EXPECT_EQ(device->weights_hash(), (*after)->hash());
    EXPECT_EQ(of(*device), two) << turn;
    EXPECT_EQ(of(*device), two) << turn;
    device->use_weights(before);
  }
}

TEST(cuda_weights, made_over_others_are_those_loaded_whole) {
  const small_model first{architecture::qwen2, 1};
  const small_model second{architecture::qwen2, 2};
  const auto all = second.tensors();
  const auto device = first.cuda(small_options());
  tensor_set changes{"update"};
  // A part of each fused piece of memory, and some that are whole.
  for (const auto* name :
       {"model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.bias", "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.mlp.gate_proj.weight", "model.layers.1.input_layernorm.weight"})
    ASSERT_TRUE(changes.add(*all.tensor(name), nullptr));
  const auto over = device->prepare_weights(changes, device->weights(), {});
  ASSERT_TRUE(over) << over.error().detail;
  tensor_set mixed{"whole"};
  const auto base = first.tensors();
  for (const auto name : base.names())
    ASSERT_TRUE(
      mixed.add(changes.contains(name) ? *all.tensor(name) : *base.tensor(name), nullptr));
  const auto whole = device->prepare_weights(mixed, nullptr, {});
  ASSERT_TRUE(whole) << whole.error().detail;
  EXPECT_EQ((*over)->hash(), (*whole)->hash());
  const auto tokens = some_tokens(5);
  device->use_weights(*over);
  const auto got = pass(*device, tokens, first_blocks, 0);
  device->use_weights(*whole);
  EXPECT_EQ(got, pass(*device, tokens, first_blocks, 0));
}

TEST(cuda_weights, that_are_wrong_are_refused_by_name) {
  const small_model model{architecture::qwen3};
  const auto device = model.cuda(small_options());
  const auto all = model.tensors();
  std::vector<float> values(64 * 64 * 2, 0.5f);
  values[64 * 7 + 3] = std::numeric_limits<float>::infinity();
  tensor_set bad{"update to epoch 7"};
  ASSERT_TRUE(bad.add({"model.layers.0.self_attn.o_proj.weight",
                       kernels::dtype::f32,
                       {64, 128},
                       std::as_bytes(std::span{values})},
                      nullptr));
  const auto mixed = device->prepare_weights(bad, device->weights(), {});
  ASSERT_FALSE(mixed);
  EXPECT_NE(mixed.error().detail.find("send every tensor to change dtypes"), std::string::npos);
  tensor_set whole{"update to epoch 7"};
  for (const auto name : all.names()) {
    if (name == "model.layers.0.self_attn.o_proj.weight")
      continue;
    ASSERT_TRUE(whole.add(*all.tensor(name), nullptr));
  }
  const auto missing = device->prepare_weights(whole, nullptr, {});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, errc::bad_checkpoint);
  EXPECT_NE(missing.error().detail.find("o_proj"), std::string::npos);
  ASSERT_TRUE(whole.add(*bad.tensor("model.layers.0.self_attn.o_proj.weight"), nullptr));
  const auto infinite = device->prepare_weights(whole, nullptr, {});
  ASSERT_FALSE(infinite);
  EXPECT_NE(infinite.error().detail.find("o_proj.weight"), std::string::npos);
  std::stop_source stop;
  stop.request_stop();
  const auto late = device->prepare_weights(all, nullptr, {.stop = stop.get_token()});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, errc::cancelled);
}

TEST(cuda_kv, leaves_and_comes_back_between_block_sizes) {
  const small_model model{architecture::llama};
  const auto tokens = some_tokens(70);
  const auto head = std::span{tokens}.first(48);
  const auto tail = std::span{tokens}.subspan(48);
  const auto alone = model.cuda(small_options(64, 16));
  pass(*alone, head, first_blocks, 0);
  const auto expected = pass(*alone, tail, first_blocks, 48);
  const std::vector<std::uint32_t> scattered{5, 0, 3, 2, 1};
  const auto from = model.cuda(small_options(6, 16));
  pass(*from, head, scattered, 0);
  std::vector<std::byte> image(3 * from->shape().kv_group_bytes);
  ASSERT_GT(image.size(), small_options().kv_stage_bytes) << "one turn only";
  from->export_kv(scattered, 3, image);
  const auto to = model.cuda(small_options(4, 64));
  const std::vector<std::uint32_t> there{3, 1};
  to->import_kv(there, 3, image);
  EXPECT_EQ(pass(*to, tail, there, 48), expected);
  std::vector<std::byte> again(image.size());
  to->export_kv(there, 3, again);
  EXPECT_EQ(image, again);
}

TEST(cuda_device, is_sized_by_the_memory_that_is_free) {
  const model_config config = small_config(architecture::qwen3);
  device_shape shape;
  shape.positions_max = 700;
  shape.block_tokens = 16;
  const std::uint64_t block = 2 * 16 * 2 * 64 * 2; // layers, tokens, K and V, head_dim, bytes
  const auto blocks = [&](std::uint64_t free, std::uint64_t weights, std::uint32_t batch = 64) {
    return cuda_kv_blocks(config, shape, batch, free, weights);
  };
  EXPECT_EQ(*blocks(1000 * block, 0), 900u);
  EXPECT_EQ(*blocks(1000 * block, 100 * block), 800u);
  EXPECT_EQ(*blocks(1'000'000 * block, 0, 8), 2 * 44 * 8u);
  const auto none = blocks(48 * block, 0);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, errc::bad_config);
  EXPECT_NE(none.error().detail.find("one context of 700 tokens"), std::string::npos);
  EXPECT_FALSE(blocks(1000 * block, 1000 * block));
}

TEST(cuda_device, takes_its_share_of_a_gpu_whoever_comes_first) {
  EXPECT_EQ(cuda_memory_share(1000, 2, 100), 400u);
  EXPECT_EQ(cuda_memory_share(1000, 3, 100), 233u);
  EXPECT_EQ(cuda_memory_share(1000, 4, 300), 0u) << "not even what it has fits";
  const small_model model{architecture::qwen3};
  auto options = small_options(0);
  options.batch_max = 1'000'000; // the memory alone bounds it
  options.sharers = 1000;        // a few MiB each in the emulator
  const auto first = model.cuda(options);
  const auto second = model.cuda(options);
  EXPECT_EQ(first->shape().kv_blocks, second->shape().kv_blocks);
  options.sharers = 800;
  EXPECT_GT(model.cuda(options)->shape().kv_blocks, first->shape().kv_blocks);
  options.sharers = 100'000;
  const auto none = model.try_cuda(options);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().detail.find("fewer workers on it"), std::string::npos);
}

TEST(cuda_device, is_no_gpu_that_the_kernels_cannot_run_on) {
  gpu::device_info info{"Some GPU", 90, 132, std::uint64_t{1} << 36, 227 * 1024, false, {}};
  EXPECT_TRUE(check_gpu(0, info));
  info.shared_bytes = 99 * 1024; // of sm_86, sm_89 and sm_120
  const auto small = check_gpu(3, info);
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().detail, "GPU 3, Some GPU, gives a block 99 KiB of shared memory: the "
                                  "kernels need 136; use another GPU, or --device cpu");
  info.architecture = 75;
  const auto old = check_gpu(0, info);
  ASSERT_FALSE(old);
  EXPECT_NE(old.error().detail.find("is sm_75: the kernels need sm_80 or newer"),
            std::string::npos);
}

TEST(cuda_device, follows_drafts_as_the_host_does) {
  const small_model model{architecture::qwen2};
  const auto device = model.cuda(small_options());
  const auto host = std::make_unique<forwarding_backend>(model.cuda(small_options()));
  const auto tokens = some_tokens(20);
  std::vector<std::uint32_t> rows(20);
  std::iota(rows.begin(), rows.end(), 0u);
  std::vector<kernels::row_place> places;
  for (std::uint32_t i = 0; i < 20; ++i)
    places.push_back({i, first_blocks[i / 16]});
  const kernels::attention_sequence sequence{first_blocks.data(), 0, 20, 0};
  std::vector<kernels::sample_params> how(20);
  for (std::uint32_t i = 0; i < 20; ++i)
    how[i].position = i + 1;
  // What is drafted was sampled before, so that much of it is accepted.
  std::vector<kernels::sampled_token> before(20);
  device->forward({tokens, places, {&sequence, 1}, rows});
  device->sample(how, before);
  std::vector<token_id> fed(20);
  const std::vector<kernels::tree_span> trees{{0, 7}, {7, 1}, {8, 12}};
  std::vector<std::uint32_t> parents(20, 0);
  prng random{3};
  for (const auto& tree : trees)
    for (std::uint32_t node = 1; node < tree.nodes; ++node) {
      const auto at = tree.begin + node;
      parents[at] = random.chance(60) ? node - 1 : static_cast<std::uint32_t>(random.below(node));
      fed[at] = before[tree.begin + parents[at]].token + (random.chance(10) ? 1 : 0);
    }
  std::size_t accepted = 0;
  std::vector<std::vector<std::uint32_t>> paths;
  for (backend* one : {device.get(), static_cast<backend*>(host.get())}) {
    std::vector<kernels::sampled_token> chosen(20);
    std::vector<kernels::accepted_path> ends(3);
    std::vector<std::uint32_t> nodes(20);
    one->forward({tokens, places, {&sequence, 1}, rows});
    one->sample_drafts(how, {trees, fed, parents}, chosen, {ends, nodes});
    EXPECT_EQ(0, std::memcmp(chosen.data(), before.data(), 20 * sizeof before[0]));
    auto& path = paths.emplace_back();
    for (std::size_t t = 0; t < trees.size(); ++t) {
      path.push_back(ends[t].length);
      path.push_back(ends[t].last);
      for (std::uint32_t i = 0; i <= ends[t].length; ++i)
        path.push_back(nodes[trees[t].begin + i]);
      accepted += ends[t].length;
    }
  }
  EXPECT_EQ(paths[0], paths[1]);
  EXPECT_GT(accepted, 6u) << "the drafts test something";
}

TEST(cuda_device, refuses_in_one_line_what_it_cannot_be) {
  small_model model{architecture::qwen3};
  const auto refused = [&](const cuda_backend_options& options, const std::string& words) {
    const auto made = model.try_cuda(options);
    ASSERT_FALSE(made) << words;
    EXPECT_EQ(made.error().code, errc::bad_config);
    EXPECT_NE(made.error().detail.find(words), std::string::npos) << made.error().detail;
  };
  auto options = small_options();
  options.device = 1000;
  refused(options, "there is no GPU 1000: the driver shows ");
  options = small_options();
  options.block_tokens = 24;
  refused(options, "block-tokens is 24: it must be a multiple of 16");
  options = small_options();
  options.kv_blocks = 400'000'000; // 3 TB
  refused(options, "take fewer --kv-blocks");
  const auto good = model.config;
  model.config.head_dim = 32;
  refused(small_options(), "the model's head_dim is 32: a GPU computes 64 and 128");
  const std::string dense = "a GPU computes models without experts";
  model.config = good;
  model.config.experts.count = 8;
  refused(small_options(), dense);
  model.config = good;
  model.config.latent.rank = 64;
  refused(small_options(), dense);
  model.config = good;
  model.config.rope.head_dim = good.head_dim / 2;
  refused(small_options(), dense);
}

} // namespace
} // namespace rollcast::test
