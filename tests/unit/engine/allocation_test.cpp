// Goal: once it is warm, a step allocates nothing: not while it prefills, grows over block edges,
// preempts, ends chunks, verifies trees or filters what may be sampled.
// Method: this program counts every operator new. The same work runs twice on one engine; the
// second time only the allocations within `step` are counted, and there must be none.

#include "tests/support/fixture_models.hpp"
#include "tests/support/rollout_driver.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <optional>
#include <ostream>

namespace {
std::atomic<std::size_t> allocations{0};
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

// noinline: GCC 12 else sees malloc behind new and takes the pairs for mismatched.
[[gnu::noinline]] void* operator new(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size))
    return memory;
  throw std::bad_alloc{};
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t align) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const auto alignment = static_cast<std::size_t>(align);
  if (void* memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment))
    return memory;
  throw std::bad_alloc{};
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

#endif

namespace rollcast::test {

namespace {

/// Drafts the same little tree for everybody.
class tree_drafter final : public drafter {
public:
  void draft(std::span<const draft_seat> seats, const step_load&) override {
    for (const auto& seat : seats)
      for (const std::int32_t parent : {-1, 0, -1, 1, 2, 2})
        seat.draft->push_back({static_cast<token_id>(seat.draft->size()) + 7, parent, 0.5f});
  }
  void learn(std::span<const draft_outcome> outcomes, const step_load&, double) override {
    for (const auto& o : outcomes)
      drafted += o.draft.size();
  }
  std::size_t drafted = 0;
};

struct work_case {
  std::string name;
  std::uint32_t kv_blocks = 512;
  std::uint32_t chunk_tokens = 80; ///< 80 is all of a response.
  bool reserve = true;
  bool drafts = false;
};

std::ostream& operator<<(std::ostream& out, const work_case& c) {
  return out << c.name;
}

class engine_step : public testing::TestWithParam<work_case> {
protected:
  static constexpr std::uint32_t responses = 32;
  static constexpr std::uint32_t length = 80;

  engine_step() {
    cpu_backend_options options;
    options.threads = 2;
    options.kv_blocks = GetParam().kv_blocks;
    options.block_tokens = 16;
    engine_limits limits;
    limits.rows_max = 128; // prompts of up to 150 tokens are cut
    sut.emplace(make_device(weights, "cpu-f32-v1", options), limits);
    if (GetParam().drafts)
      sut->speculate(trees);
  }

  /// Runs every response to its end. @returns the allocations within `step`.
  std::size_t run() {
    auto work =
      mixed_rollout(static_cast<std::uint32_t>(weights->config().vocabulary), responses, 60, 9);
    for (auto& request : work) {
      request.sampling.max_new_tokens = request.sampling.min_new_tokens = length;
      request.generate_max = GetParam().chunk_tokens;
      request.reserve = GetParam().reserve;
      EXPECT_TRUE(sut->admit(request));
    }
    std::size_t counted = 0;
    std::vector<chunk_request> next;
    while (sut->has_work()) {
      const auto before = allocations.load();
      const auto ended = sut->step();
      counted += allocations.load() - before;
      for (const auto& report : ended) {
        if (report.why != chunk_end::budget)
          continue;
        auto& request = work[report.response.value - 1];
        request.tokens.insert(request.tokens.end(), report.tokens.begin(), report.tokens.end());
        next.push_back(request);
      }
      for (auto& request : next)
        EXPECT_TRUE(sut->admit(std::move(request)));
      next.clear();
    }
    return counted;
  }

  std::shared_ptr<const model_weights> weights = load_weights(fixture_model("qwen3"), "cpu-f32-v1");
  std::shared_ptr<tree_drafter> trees = std::make_shared<tree_drafter>();
  std::optional<engine> sut;
};

TEST_P(engine_step, allocates_nothing_once_warm) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers bring their own operator new";
#endif
  run();
  ASSERT_GT(allocations.load(), 0u) << "the counter counts";
  const auto warm = sut->stats();
  EXPECT_EQ(run(), 0u);
  const auto& now = sut->stats();
  EXPECT_EQ(now.generated_tokens - warm.generated_tokens, responses * length);
  EXPECT_GT(now.prompt_tokens, warm.prompt_tokens);
  EXPECT_EQ(now.preemptions > warm.preemptions, !GetParam().reserve) << "says what it is about";
  EXPECT_EQ(trees->drafted > 1'000, GetParam().drafts);
}

INSTANTIATE_TEST_SUITE_P(work, engine_step,
                         testing::Values(work_case{"whole responses"}, work_case{"chunks", 512, 7},
                                         work_case{"preemption", 40, 80, false},
                                         work_case{"drafts", 512, 80, true, true}),
                         [](const auto& info) {
                           auto name = info.param.name;
                           for (char& c : name)
                             c = c == ' ' ? '_' : c;
                           return name;
                         });

} // namespace

} // namespace rollcast::test
