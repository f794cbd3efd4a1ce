// Goal: weights loaded as changes over others are, byte for byte, those loaded anew, and changes
// that do not fit are refused in one line before anything is made of them.
// Method: random subsets of a second checkpoint's tensors over a first one, in every family, dtype
// and arithmetic, against a whole load of the same mixture from memory; one thing broken at a time.

#include "engine/base/prng.hpp"
#include "engine/model/checkpoint.hpp"
#include "engine/model/tensor_check.hpp"
#include "engine/model/weights.hpp"
#include "tests/support/tiny_model.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace rollcast {
namespace {

using kernels::arithmetic;
using kernels::dtype;
using weights_ptr = std::shared_ptr<const model_weights>;
using loaded = result<weights_ptr>;

/// Two random checkpoints of one shape, and mixtures of them.
class two_models {
public:
  explicit two_models(architecture family, dtype type = dtype::bf16) {
    write_tiny_model(before_directory_.path(), family, 1, type);
    write_tiny_model(after_directory_.path(), family, 2, type);
    before_ = std::make_shared<checkpoint>(std::move(*checkpoint::open(before_directory_.path())));
    after_ = std::make_shared<checkpoint>(std::move(*checkpoint::open(after_directory_.path())));
    config_ = *load_config(before_directory_.path());
  }

  const model_config& config() const { return config_; }
  const checkpoint& before() const { return *before_; }

  weights_ptr base(arithmetic how) const { return *model_weights::load(config_, *before_, how); }

  /// The second checkpoint's tensors of these names, and, if `complete`, the first one's others.
  tensor_set mixture(const std::set<std::string>& changed, bool complete) const {
    tensor_set out("update to epoch 7");
    for (const auto name : before_->names()) {
      const bool changes = changed.contains(std::string(name));
      if (!changes && !complete)
        continue;
      const auto& from = changes ? after_ : before_;
      EXPECT_TRUE(out.add(*from->tensor(name), from).has_value());
    }
    return out;
  }

  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& tensor : plan_tensors(config_))
      out.push_back(tensor.name);
    return out;
  }

private:
  temporary_directory before_directory_;
  temporary_directory after_directory_;
  std::shared_ptr<checkpoint> before_;
  std::shared_ptr<checkpoint> after_;
  model_config config_;
};

void expect_equal(const model_weights& a, const model_weights& b) {
  EXPECT_EQ(a.hash(), b.hash());
  EXPECT_TRUE(
    std::equal(a.tensors().begin(), a.tensors().end(), b.tensors().begin(), b.tensors().end()));
  ASSERT_EQ(a.arena_bytes(), b.arena_bytes());
  EXPECT_EQ(0, std::memcmp(a.layers()[0].qkv.data, b.layers()[0].qkv.data, a.arena_bytes()))
    << "the first matrix begins the arena";
  EXPECT_EQ(std::vector(a.final_norm().begin(), a.final_norm().end()),
            std::vector(b.final_norm().begin(), b.final_norm().end()));
  for (std::size_t i = 0; i < a.layers().size(); ++i) {
    EXPECT_EQ(a.layers()[i].input_norm, b.layers()[i].input_norm);
    EXPECT_EQ(a.layers()[i].post_norm, b.layers()[i].post_norm);
    EXPECT_EQ(a.layers()[i].q_norm, b.layers()[i].q_norm);
    EXPECT_EQ(a.layers()[i].k_norm, b.layers()[i].k_norm);
    EXPECT_EQ(a.layers()[i].qkv_bias, b.layers()[i].qkv_bias);
    EXPECT_EQ(a.layers()[i].choice_bias, b.layers()[i].choice_bias);
    EXPECT_EQ(a.layers()[i].q_a_norm, b.layers()[i].q_a_norm);
    EXPECT_EQ(a.layers()[i].kv_a_norm, b.layers()[i].kv_a_norm);
  }
}

struct change_case {
  architecture family;
  dtype stored;
  arithmetic how;
};

class every_change : public testing::TestWithParam<change_case> {};

TEST_P(every_change, gives_the_weights_of_a_whole_load) {
  const auto& about = GetParam();
  const two_models models(about.family, about.stored);
  const auto base = models.base(about.how);
  const auto names = models.names();
  prng random(5);
  for (int round = 0; round < 12; ++round) {
    std::set<std::string> changed{names[random.below(names.size())]};
    for (const auto& name : names)
      if (round > 3 && random.below(4) < static_cast<std::uint64_t>(round) / 4)
        changed.insert(name);
    const load_options threads{.threads = 1 + static_cast<std::size_t>(round) % 3};
    const auto whole =
      model_weights::load(models.config(), models.mixture(changed, true), about.how);
    ASSERT_TRUE(whole.has_value()) << whole.error().detail;
    const auto over = model_weights::load_over(*base, models.mixture(changed, false), threads);
    ASSERT_TRUE(over.has_value()) << over.error().detail;
    EXPECT_NE(base->hash(), (*over)->hash());
    expect_equal(**whole, **over);
  }
}

INSTANTIATE_TEST_SUITE_P(
  storages, every_change,
  testing::Values(change_case{architecture::qwen3, dtype::bf16, arithmetic::f32},
                  change_case{architecture::qwen3, dtype::f32, arithmetic::bf16},
                  change_case{architecture::qwen2, dtype::bf16, arithmetic::bf16},
                  change_case{architecture::qwen2, dtype::f16, arithmetic::f32},
                  change_case{architecture::llama, dtype::f32, arithmetic::f32},
                  change_case{architecture::llama, dtype::bf16, arithmetic::bf16},
                  change_case{architecture::mimo, dtype::f16, arithmetic::bf16},
                  change_case{architecture::mimo, dtype::bf16, arithmetic::f32},
                  change_case{architecture::qwen3_moe, dtype::f32, arithmetic::bf16},
                  change_case{architecture::glm4_moe, dtype::bf16, arithmetic::bf16},
                  change_case{architecture::deepseek_v3, dtype::bf16, arithmetic::bf16},
                  change_case{architecture::deepseek_v3, dtype::f16, arithmetic::f32},
                  change_case{architecture::qwen3_moe, dtype::bf16, arithmetic::f32}));

TEST(changed_weights, go_back_to_what_they_were) {
  const two_models models(architecture::qwen3);
  const auto base = models.base(arithmetic::f32);
  const auto there =
    model_weights::load_over(*base, models.mixture({"model.layers.1.mlp.up_proj.weight"}, false));
  ASSERT_TRUE(there.has_value()) << there.error().detail;
  tensor_set back("update to epoch 8");
  ASSERT_TRUE(back.add(*models.before().tensor("model.layers.1.mlp.up_proj.weight"), nullptr));
  const auto again = model_weights::load_over(**there, back);
  ASSERT_TRUE(again.has_value()) << again.error().detail;
  expect_equal(*base, **again);
}

TEST(changed_weights, that_nobody_wants_any_more_are_not_loaded) {
  const two_models models(architecture::qwen3);
  const auto base = models.base(arithmetic::f32);
  const auto names = models.names();
  const auto all = models.mixture({names.begin(), names.end()}, false);
  std::stop_source stop;
  load_options options;
  options.stop = stop.get_token();
  EXPECT_TRUE(model_weights::load_over(*base, all, options));
  stop.request_stop();
  const auto changed = model_weights::load_over(*base, all, options);
  ASSERT_FALSE(changed);
  EXPECT_EQ(changed.error().code, errc::cancelled);
  const auto whole =
    model_weights::load(models.config(), models.before(), arithmetic::f32, options);
  ASSERT_FALSE(whole);
  EXPECT_EQ(whole.error().code, errc::cancelled);
}

TEST(changed_weights, say_what_each_tensor_is) {
  const two_models models(architecture::llama);
  const auto base = models.base(arithmetic::f32);
  ASSERT_EQ(models.names().size(), base->tensors().size());
  EXPECT_EQ(base->hash(), epoch_hash_of(base->tensors()));
  std::string last;
  for (const auto& tensor : base->tensors()) {
    EXPECT_LT(last, tensor.name);
    last = tensor.name;
    const auto view = models.before().tensor(tensor.name);
    EXPECT_EQ(hash_bytes(view->bytes), tensor.hash) << tensor.name;
    EXPECT_EQ(view->bytes.size(), bytes_of(tensor)) << tensor.name;
  }
}

// -- what is refused ----------------------------------------------------------

template <class T>
void expect_refused(const result<T>& got, const std::vector<std::string>& words) {
  ASSERT_FALSE(got.has_value());
  EXPECT_EQ(errc::bad_checkpoint, got.error().code);
  EXPECT_EQ(std::string::npos, got.error().detail.find('\n')) << got.error().detail;
  for (const auto& word : words)
    EXPECT_NE(std::string::npos, got.error().detail.find(word))
      << "no '" << word << "' in: " << got.error().detail;
}

/// One tensor of zeros, or of what is given.
tensor_set one(const std::string& name, dtype type, std::vector<std::size_t> shape,
               std::vector<std::byte> bytes = {}) {
  tensor_set out("update to epoch 7");
  bytes.resize(bytes_of({name, type, shape, {}}));
  const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  EXPECT_TRUE(out.add({name, type, std::move(shape), *owner}, owner).has_value());
  return out;
}

TEST(changed_weights, refuse_what_does_not_fit_the_base) {
  const two_models models(architecture::qwen3);
  const auto base = models.base(arithmetic::f32);
  const auto over = [&](const tensor_set& set) { return model_weights::load_over(*base, set); };
  expect_refused(over(tensor_set("update to epoch 7")), {"update to epoch 7", "none of its"});
  expect_refused(over(one("model.nrom.weight", dtype::bf16, {64})),
                 {"update to epoch 7", "Qwen3ForCausalLM", "1 tensor unknown: model.nrom.weight"});
  expect_refused(over(one("model.norm.weight", dtype::bf16, {63})),
                 {"update to epoch 7", "model.norm.weight", "[63]", "[64]"});
  expect_refused(over(one("model.norm.weight", dtype::f32, {64})),
                 {"model.norm.weight is of F32", "are of BF16", "send every tensor"});
  const std::vector<std::byte> nan{std::byte{0}, std::byte{0}, std::byte{0xc0}, std::byte{0x7f}};
  expect_refused(over(one("model.norm.weight", dtype::bf16, {64}, nan)),
                 {"update to epoch 7", "model.norm.weight[1] = nan"});
  EXPECT_TRUE(model_weights::load_over(*base, one("model.norm.weight", dtype::bf16, {64}, nan),
                                       {.allow_non_finite = true}));
}

TEST(changed_weights, hold_a_tied_head_against_the_embedding) {
  const two_models models(architecture::qwen3); // its embeddings are tied
  const auto base = models.base(arithmetic::f32);
  auto head = models.mixture({"model.norm.weight"}, false);
  auto embedding = *models.before().tensor("model.embed_tokens.weight");
  embedding.name = "lm_head.weight";
  ASSERT_TRUE(head.add(embedding, nullptr));
  EXPECT_TRUE(model_weights::load_over(*base, head).has_value()) << "it is the base's embedding";
  auto other = models.mixture({"model.embed_tokens.weight"}, false);
  ASSERT_TRUE(other.add(embedding, nullptr));
  expect_refused(model_weights::load_over(*base, other), {"update to epoch 7", "lm_head.weight"});
}

TEST(tensor_set, refuses_a_name_twice_and_bytes_that_are_not_its_shape) {
  const std::vector<std::byte> bytes(8);
  tensor_set set("update to epoch 7");
  EXPECT_TRUE(set.add({"a", dtype::f32, {2}, bytes}, nullptr));
  expect_refused(set.add({"a", dtype::f32, {2}, bytes}, nullptr), {"epoch 7", "tensor a", "twice"});
  expect_refused(set.add({"b", dtype::f32, {3}, bytes}, nullptr), {"tensor b", "8 bytes", "12"});
  constexpr std::size_t huge = std::size_t{1} << 62;
  expect_refused(set.add({"c", dtype::f32, {huge, 4}, {}}, nullptr), {"tensor c", "0 bytes"});
  EXPECT_EQ((std::vector<std::string_view>{"a"}), set.names());
  expect_refused(set.tensor("b"), {"tensor b", "missing"});
}

TEST(check_tensors, says_before_the_bytes_what_the_loader_would) {
  const two_models models(architecture::llama);
  const auto base = models.base(arithmetic::f32);
  const std::vector<tensor_info> all(base->tensors().begin(), base->tensors().end());
  const auto check = [&](const std::vector<tensor_info>& tensors, bool complete) {
    return check_tensors(models.config(), tensors, complete, "update to epoch 7");
  };
  EXPECT_TRUE(check(all, true));
  EXPECT_TRUE(check({all[3]}, false));
  expect_refused(check({}, false), {"none of its tensors"});
  auto some = all;
  some.erase(some.begin() + 3);
  expect_refused(check(some, true), {"epoch 7", "1 tensor missing: " + all[3].name});
  some = all;
  some.push_back(all[3]);
  expect_refused(check(some, true), {all[3].name, "twice"});
  some = all;
  some[3].name = "b";
  expect_refused(check(some, false), {"1 tensor unknown: b"});
  some[3] = all[3];
  some[3].shape.push_back(9);
  expect_refused(check(some, false), {all[3].name + " has shape", "9]", "config.json asks for"});
}

} // namespace
} // namespace rollcast
