#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace rollcast {

/// A fixed team of threads that shares loops. The caller is one of them. A loop is divided into
/// runs of consecutive items that are claimed in order, so which thread computes an item is left to
/// chance; therefore no item's result may depend on it. Between loops the threads spin for a
/// bounded time and then sleep, so a busy machine is not made worse.
class thread_pool {
public:
  /// @param threads  Size of the team, the caller included; 0 is taken as 1.
  explicit thread_pool(std::size_t threads);
  ~thread_pool();
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  std::size_t size() const noexcept { return team_.size() + 1; }

  /// Calls body(begin, end, thread) until [0, items) is covered once, in runs of at most `grain`
  /// items (one run when there is nobody to share with); `thread` is in [0, size()). Returns when
  /// all is done. Allocates nothing. Not reentrant; one caller at a time.
  template <class Body>
  void run(std::size_t items, std::size_t grain, Body&& body) {
    if (team_.empty() || items <= grain) {
      if (items > 0)
        body(std::size_t{0}, items, std::size_t{0});
      return;
    }
    const auto call = [](void* context, std::size_t begin, std::size_t end, std::size_t thread) {
      (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end, thread);
    };
    share(items, grain, call, &body);
  }

private:
  using trampoline = void (*)(void*, std::size_t, std::size_t, std::size_t);

  void share(std::size_t items, std::size_t grain, trampoline call, void* context);
  void serve(std::size_t thread);
  void claim_runs(std::size_t thread);

  // The loop being shared. Written by the caller before `round_` moves on.
  trampoline call_ = nullptr;
  void* context_ = nullptr;
  std::size_t items_ = 0;
  std::size_t grain_ = 1;

  alignas(64) std::atomic<std::size_t> next_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
  alignas(64) std::atomic<std::uint32_t> busy_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> team_;
};

} // namespace rollcast
