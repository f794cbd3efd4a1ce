#include "engine/backend/thread_pool.hpp"

namespace rollcast {

namespace {

/// About 20 microseconds: longer than the gap between two operations of a step, far shorter than a
/// scheduler's time slice.
constexpr int spins_max = 4000;

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until `word` differs from `old`: spins a little, then sleeps.
void await_change(const std::atomic<std::uint32_t>& word, std::uint32_t old) noexcept {
  for (int spin = 0; spin < spins_max; ++spin) {
    if (word.load(std::memory_order_acquire) != old)
      return;
    relax();
  }
  while (word.load(std::memory_order_acquire) == old)
    word.wait(old, std::memory_order_acquire);
}

} // namespace

thread_pool::thread_pool(std::size_t threads) {
  for (std::size_t thread = 1; thread < threads; ++thread)
    team_.emplace_back([this, thread] { serve(thread); });
}

thread_pool::~thread_pool() {
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto& member : team_)
    member.join();
}

void thread_pool::claim_runs(std::size_t thread) {
  for (;;) {
    const std::size_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= items_)
      return;
    const std::size_t end = items_ - begin < grain_ ? items_ : begin + grain_;
    call_(context_, begin, end, thread);
  }
}

void thread_pool::share(std::size_t items, std::size_t grain, trampoline call, void* context) {
  call_ = call;
  context_ = context;
  items_ = items;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<std::uint32_t>(team_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  claim_runs(0);
  for (std::uint32_t left = busy_.load(std::memory_order_acquire); left != 0;
       left = busy_.load(std::memory_order_acquire))
    await_change(busy_, left);
}

void thread_pool::serve(std::size_t thread) {
  std::uint32_t seen = 0;
  for (;;) {
    await_change(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed))
      return;
    claim_runs(thread);
    if (busy_.fetch_sub(1, std::memory_order_release) == 1)
      busy_.notify_all();
  }
}

} // namespace rollcast
