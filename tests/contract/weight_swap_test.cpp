// Goal: after weights are exchanged an engine gives the bits of a fresh one over the new weights,
// whatever it did before, and of the old ones when they come back; nothing of one epoch is used
// in another; preparing weights beside a running engine changes no bit of it.
// Method: two random checkpoints per family, in both profiles; the mixed rollout on fresh engines
// is the truth for each.

#include "engine/model/checkpoint.hpp"
#include "engine/model/random_model.hpp"
#include "tests/contract/engine_settings.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

namespace rollcast::test {

namespace {

using responses = std::map<std::uint64_t, finished_response>;
using held_weights = std::shared_ptr<const device_weights>;

/// One of two checkpoints with the same config.
class epoch {
public:
  epoch(const model_config& config, std::uint64_t seed, const std::string& profile) {
    EXPECT_TRUE(write_random_model(directory_.path(), config, seed, kernels::dtype::bf16));
    weights = load_weights(directory_.path(), profile);
  }

  checkpoint source() const { return std::move(*checkpoint::open(directory_.path())); }

  std::shared_ptr<const model_weights> weights;

private:
  temporary_directory directory_;
};

class weight_swap : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
protected:
  std::string profile() const { return std::get<1>(GetParam()); }

  engine fresh(const epoch& of) const {
    return {make_device(of.weights, profile(), device_of(2, 256, 16)), {16, 256, 0}};
  }

  /// The rollout in chunks, so that KV is parked on the way.
  responses run(std::vector<engine>& engines) const { return run_rollout(work, engines, {16}); }

  responses truth(const epoch& of) const {
    std::vector<engine> engines;
    engines.push_back(fresh(of));
    return run(engines);
  }

  /// Prepares all of `to`, or, with `over`, a layer and some parts of fused matrices.
  static held_weights prepare(const engine& on, const epoch& to, const held_weights& over = {}) {
    const auto source = to.source();
    tensor_set changes("test");
    for (const auto name : source.names())
      if (name.find("layers.1.") != name.npos || name.find("v_proj") != name.npos) {
        EXPECT_TRUE(changes.add(*source.tensor(name), nullptr));
      }
    const tensor_source& from = over ? static_cast<const tensor_source&>(changes) : source;
    auto made = on.device().prepare_weights(from, over, {});
    EXPECT_TRUE(made) << made.error().detail;
    return made ? *made : nullptr;
  }

  static void expect_same(const responses& got, const responses& expected, const char* when) {
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [id, response] : expected)
      EXPECT_TRUE(same_bits(response, got.at(id))) << when << ", response " << id;
  }

  model_config config = *load_config(fixture_model(std::get<0>(GetParam())));
  epoch a{config, 1, profile()};
  epoch b{config, 2, profile()};
  rollout work = mixed_rollout(static_cast<std::uint32_t>(config.vocabulary), 12, 48, 5);
};

/// A chunk of 20 tokens of a response of 40.
chunk_request half_a_response(const rollout& work) {
  auto request = work[1];
  request.sampling.max_new_tokens = 40;
  request.sampling.min_new_tokens = 40;
  request.generate_max = 20;
  return request;
}

/// Runs one chunk alone; its tokens and log-probabilities.
finished_response run_chunk(engine& on, const chunk_request& request) {
  finished_response out;
  EXPECT_TRUE(on.admit(request));
  while (on.has_work())
    for (const auto& report : on.step()) {
      out.tokens.assign(report.tokens.begin(), report.tokens.end());
      out.logprobs.assign(report.logprobs.begin(), report.logprobs.end());
      out.kept_masses.assign(report.kept_masses.begin(), report.kept_masses.end());
    }
  return out;
}

TEST_P(weight_swap, gives_the_bits_of_a_fresh_engine_there_and_back) {
  const auto truth_a = truth(a);
  const auto truth_b = truth(b);
  std::vector<engine> engines;
  engines.push_back(fresh(a));
  auto& one = engines.front();
  expect_same(run(engines), truth_a, "before");
  const held_weights before = one.device().weights();
  const auto next = prepare(one, b);
  ASSERT_TRUE(next);
  EXPECT_EQ(next->hash(), b.weights->hash());
  EXPECT_EQ(one.device().weights_hash(), a.weights->hash()) << "preparing is not using";
  ASSERT_TRUE(one.use_weights(next));
  EXPECT_EQ(one.device().weights_hash(), b.weights->hash());
  expect_same(run(engines), truth_b, "after");
  ASSERT_TRUE(one.use_weights(before));
  expect_same(run(engines), truth_a, "back");
  EXPECT_FALSE(same_bits(truth_a.begin()->second, truth_b.begin()->second));
}

TEST_P(weight_swap, of_changes_gives_the_bits_of_an_engine_over_all_of_them) {
  std::vector<engine> engines;
  engines.push_back(fresh(a));
  auto& one = engines.front();
  const auto mixed = prepare(one, b, one.device().weights());
  ASSERT_TRUE(mixed);
  EXPECT_NE(mixed->hash(), a.weights->hash());
  EXPECT_NE(mixed->hash(), b.weights->hash());
  ASSERT_TRUE(one.use_weights(mixed));
  const auto got = run(engines);
  // From the other side: b with a's other tensors is the same mixture.
  tensor_set rest("test");
  const auto source = a.source();
  const auto theirs = mixed->tensors();
  for (const auto& tensor : a.weights->tensors())
    if (std::find(theirs.begin(), theirs.end(), tensor) != theirs.end()) {
      ASSERT_TRUE(rest.add(*source.tensor(tensor.name), nullptr));
    }
  std::vector<engine> others;
  others.push_back(fresh(b));
  auto made = others.front().device().prepare_weights(rest, others.front().device().weights(), {});
  ASSERT_TRUE(made) << made.error().detail;
  EXPECT_EQ((*made)->hash(), mixed->hash());
  ASSERT_TRUE(others.front().use_weights(*made));
  expect_same(got, run(others), "mixture");
}

TEST_P(weight_swap, uses_no_kv_of_the_weights_before) {
  const auto request = half_a_response(work);
  auto one = fresh(a);
  const auto begun = run_chunk(one, request);
  kv_bytes image;
  const auto manifest = one.export_kv(request.response, image);
  ASSERT_TRUE(manifest);
  const held_weights before = one.device().weights();
  ASSERT_TRUE(one.use_weights(prepare(one, b)));
  EXPECT_FALSE(one.parked(request.response));
  EXPECT_EQ(one.kv().free, one.kv().total);
  // An image of the old epoch that was on its way is not believed either.
  const auto late = one.import_kv(*manifest, image);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, errc::stale_epoch) << late.error().detail;
  EXPECT_EQ(one.kv().free, one.kv().total);

  auto rest = request;
  rest.tokens.insert(rest.tokens.end(), begun.tokens.begin(), begun.tokens.end());
  auto other = fresh(b);
  EXPECT_TRUE(same_bits(run_chunk(one, rest), run_chunk(other, rest)));

  ASSERT_TRUE(one.use_weights(before));
  ASSERT_TRUE(one.import_kv(*manifest, image)) << "with its own weights it is good again";
  auto old = fresh(a);
  EXPECT_TRUE(same_bits(run_chunk(one, rest), run_chunk(old, rest)));
}

TEST_P(weight_swap, is_refused_while_anything_is_admitted) {
  auto one = fresh(a);
  const auto next = prepare(one, b);
  const auto request = half_a_response(work);
  for (const bool running : {false, true}) {
    ASSERT_TRUE(one.admit(request));
    if (running)
      one.step();
    const auto refused = one.use_weights(next);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, errc::bad_config);
    EXPECT_NE(refused.error().detail.find(running ? "1 responses run and 0 wait"
                                                  : "0 responses run and 1 wait"),
              std::string::npos)
      << refused.error().detail;
    EXPECT_EQ(one.device().weights_hash(), a.weights->hash());
    ASSERT_TRUE(one.release(request.response));
  }
  EXPECT_TRUE(one.use_weights(next));
}

TEST_P(weight_swap, scores_with_held_weights_and_leaves_those_in_use) {
  const auto truth_a = truth(a);
  auto one = fresh(a);
  const held_weights before = one.device().weights();
  ASSERT_TRUE(one.use_weights(prepare(one, b)));
  const auto request = half_a_response(work);
  auto other = fresh(b);
  const auto expected = run_chunk(other, request);
  ASSERT_TRUE(one.admit(request));
  std::vector<float> logprobs;
  finished_response got;
  for (auto scored = truth_a.begin(); one.has_work();) {
    for (const auto& report : one.step()) {
      got.tokens.assign(report.tokens.begin(), report.tokens.end());
      got.logprobs.assign(report.logprobs.begin(), report.logprobs.end());
      got.kept_masses.assign(report.kept_masses.begin(), report.kept_masses.end());
    }
    if (scored == truth_a.end())
      continue;
    const auto& response = scored->second;
    auto tokens = response.prompt;
    tokens.insert(tokens.end(), response.tokens.begin(), response.tokens.end());
    ASSERT_TRUE(one.score(tokens, static_cast<std::uint32_t>(response.prompt.size()),
                          response.temperature, logprobs, before));
    ASSERT_EQ(logprobs.size(), response.logprobs.size());
    EXPECT_EQ(
      0, std::memcmp(logprobs.data(), response.logprobs.data(), logprobs.size() * sizeof(float)))
      << "response " << scored->first;
    ++scored;
  }
  EXPECT_EQ(one.device().weights_hash(), b.weights->hash());
  EXPECT_TRUE(same_bits(got, expected)) << "what ran meanwhile";
}

TEST_P(weight_swap, may_be_prepared_while_the_engine_steps) {
  const auto truth_a = truth(a);
  std::vector<engine> engines;
  engines.push_back(fresh(a));
  const held_weights base = engines.front().device().weights();
  std::atomic<bool> done{false};
  std::size_t made = 0;
  std::thread loader([&] {
    do {
      const auto next = prepare(engines.front(), b, made % 2 == 0 ? held_weights{} : base);
      EXPECT_TRUE(made % 2 != 0 || next->hash() == b.weights->hash());
      ++made;
    } while (!done);
  });
  const auto got = run(engines);
  done = true;
  loader.join();
  EXPECT_GT(made, 0u);
  expect_same(got, truth_a, "meanwhile");
}

INSTANTIATE_TEST_SUITE_P(families, weight_swap, every_model(), name_of_model);

} // namespace

} // namespace rollcast::test
