// Goal: once it is warm, a step allocates nothing.
// Method: this program counts every operator new; after a few steps of a full batch (prefill done)
// the count must stay still while the batch decodes on two threads.

#include "tests/support/fixture_models.hpp"
#include "tests/support/rollout_driver.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<std::size_t> allocations{0};
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

void* operator new(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size))
    return memory;
  throw std::bad_alloc{};
}
void* operator new(std::size_t size, std::align_val_t align) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const auto alignment = static_cast<std::size_t>(align);
  if (void* memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment))
    return memory;
  throw std::bad_alloc{};
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

#endif

namespace rollcast::test {

namespace {

TEST(engine_step, allocates_nothing_once_warm) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers bring their own operator new";
#endif
  const auto weights = load_weights(fixture_model("qwen3"), "cpu-f32-v1");
  cpu_backend_options options;
  options.threads = 2;
  options.kv_blocks = 512;
  options.block_tokens = 16;
  engine sut{make_device(weights, "cpu-f32-v1", options), {}};
  auto work = mixed_rollout(static_cast<std::uint32_t>(weights->config().vocabulary), 32, 60, 9);
  for (auto& request : work) {
    request.sampling.max_new_tokens = request.sampling.min_new_tokens = 80;
    request.generate_max = 80;
    ASSERT_TRUE(sut.admit(request));
  }
  for (int step = 0; step < 10; ++step)
    sut.step();
  ASSERT_EQ(sut.running(), 32u);
  const auto generated = sut.stats().generated_tokens;
  const auto before = allocations.load();
  for (int step = 0; step < 40; ++step)
    sut.step();
  EXPECT_EQ(allocations.load() - before, 0u);
  EXPECT_EQ(sut.stats().generated_tokens - generated, 40u * 32u) << "the steps did their work";
}

} // namespace

} // namespace rollcast::test
