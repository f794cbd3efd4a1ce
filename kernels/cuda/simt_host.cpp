#include "kernels/cuda/simt_host.cuh"

#include "kernels/cuda/emulator.hpp"
#include "kernels/cuda/fiber.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace rollcast::kernels::cuda {

namespace {

thread_local std::uint64_t order_seed = 0;

/// 0 .. count - 1 in the order that is set.
std::vector<unsigned> ordered(unsigned count, std::uint64_t salt) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (order_seed == 1)
    std::reverse(order.begin(), order.end());
  std::uint64_t state = order_seed * 0x9e3779b97f4a7c15u + salt;
  if (order_seed > 1)
    for (unsigned i = count; i > 1; --i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i - 1], order[(state >> 33) % i]);
    }
  return order;
}

} // namespace

void set_emulated_order(std::uint64_t seed) noexcept {
  order_seed = seed;
}

namespace simt::host {
namespace {

struct pending_copy {
  unsigned char* shared;
  const void* global;
  bool valid;
};

enum class stop { ready, warp, block, ended };

/// One thread of the block that runs.
struct thread_state {
  fiber stack;
  place where{};
  stop at = stop::ready;
  warp_operation operation = nullptr;
  void* payload = nullptr;
  std::vector<pending_copy> copies;
  std::vector<std::size_t> groups; ///< Copies of each committed group, oldest first.
  std::size_t open = 0;            ///< Copies of the group that is not committed yet.
};

/// Runs the blocks of one host thread, one at a time.
class block_runner {
public:
  /// @returns the first broken rule, or "".
  std::string run(const launch_shape& shape, const unsigned (&block)[3],
                  const std::function<void()>& body);

  thread_state& now() noexcept { return *running_; }
  void leave_with(stop why) {
    running_->at = why;
    running_->stack.leave();
  }
  /// Ends the running thread, and with it the kernel.
  void give_up(const std::string& why) {
    if (failure_.empty())
      failure_ = "thread " + std::to_string(running_->where.thread) + ": " + why;
    leave_with(stop::ended);
  }
  bool shared_holds(const void* p, std::size_t bytes) const noexcept {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    const auto begin = reinterpret_cast<std::uintptr_t>(shared_.get());
    return at >= begin && at + bytes <= begin + shared_bytes_ && at % 16 == 0;
  }

private:
  struct release {
    void operator()(unsigned char* p) const { std::free(p); }
  };

  void prepare(const launch_shape& shape, const unsigned (&block)[3]);
  void run_thread(thread_state& thread);
  bool run_warp(unsigned warp);
  std::string stuck() const;
  static void thread_main(void* self);

  std::vector<std::unique_ptr<thread_state>> threads_;
  std::unique_ptr<unsigned char, release> shared_;
  std::size_t shared_bytes_ = 0;
  unsigned count_ = 0;
  thread_state* running_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::string failure_;
};

thread_local block_runner runner;

void block_runner::thread_main(void* self) {
  auto* const me = static_cast<block_runner*>(self);
  (*me->body_)();
  me->leave_with(stop::ended);
}

void block_runner::prepare(const launch_shape& shape, const unsigned (&block)[3]) {
  if (!shared_)
    shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(1024, 228 * 1024)));
  shared_bytes_ = shape.shared_bytes;
  std::memset(shared_.get(), 0xff, shared_bytes_);
  count_ = shape.threads;
  failure_.clear();
  while (threads_.size() < count_)
    threads_.push_back(std::make_unique<thread_state>());
  for (unsigned i = 0; i < count_; ++i) {
    thread_state& thread = *threads_[i];
    thread.where = {i,
                    {block[0], block[1], block[2]},
                    {shape.grid[0], shape.grid[1], shape.grid[2]},
                    count_,
                    shared_.get()};
    thread.at = stop::ready;
    thread.copies.clear();
    thread.groups.clear();
    thread.open = 0;
    thread.stack.start(&thread_main, this);
  }
}

void block_runner::run_thread(thread_state& thread) {
  running_ = &thread;
  thread.stack.enter();
}

/// Runs the warp until all its lanes wait at a barrier or have ended. @returns whether it went on.
bool block_runner::run_warp(unsigned warp) {
  bool moved = false;
  for (;;) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      thread_state& thread = *threads_[warp * 32 + lane];
      if (thread.at != stop::ready)
        continue;
      moved = true;
      run_thread(thread);
      if (!failure_.empty())
        return false;
    }
    lane_payloads payloads;
    const thread_state& first = *threads_[warp * 32];
    for (unsigned lane = 0; lane < 32; ++lane) {
      const thread_state& thread = *threads_[warp * 32 + lane];
      if (thread.at != stop::warp || thread.operation != first.operation)
        return moved;
      payloads[lane] = thread.payload;
    }
    first.operation(payloads);
    for (unsigned lane = 0; lane < 32; ++lane)
      threads_[warp * 32 + lane]->at = stop::ready;
  }
}

/// Why nothing goes on.
std::string block_runner::stuck() const {
  std::size_t at[4] = {};
  for (unsigned i = 0; i < count_; ++i)
    ++at[static_cast<std::size_t>(threads_[i]->at)];
  return "threads part: " + std::to_string(at[1]) + " wait at a warp operation that not all lanes "
         + "come to, " + std::to_string(at[2]) + " at the block's barrier, " + std::to_string(at[3])
         + " have ended";
}

std::string block_runner::run(const launch_shape& shape, const unsigned (&block)[3],
                              const std::function<void()>& body) {
  body_ = &body;
  prepare(shape, block);
  const auto warps = ordered(count_ / 32, block[0]);
  for (;;) {
    bool moved = false;
    for (const unsigned warp : warps) {
      moved |= run_warp(warp);
      if (!failure_.empty())
        return failure_;
    }
    const auto all_at = [&](stop what) {
      return std::all_of(threads_.begin(), threads_.begin() + count_,
                         [&](const auto& thread) { return thread->at == what; });
    };
    if (all_at(stop::ended))
      return "";
    if (all_at(stop::block)) {
      for (unsigned i = 0; i < count_; ++i)
        threads_[i]->at = stop::ready;
    } else if (!moved) {
      return stuck();
    }
  }
}

} // namespace

// -- what kernels call --------------------------------------------------------

const place& here() noexcept {
  return runner.now().where;
}

void meet_warp(warp_operation operation, void* payload) noexcept {
  thread_state& me = runner.now();
  me.operation = operation;
  me.payload = payload;
  runner.leave_with(stop::warp);
}

void meet_block() noexcept {
  runner.leave_with(stop::block);
}

void begin_copy(void* shared, const void* global, bool valid) noexcept {
  if (!runner.shared_holds(shared, 16))
    runner.give_up("an asynchronous copy goes outside of the shared memory, or is not aligned");
  if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0)
    runner.give_up("an asynchronous copy comes from an address that is not aligned");
  thread_state& me = runner.now();
  std::memset(shared, 0xff, 16); // NaN until somebody has waited.
  me.copies.push_back({static_cast<unsigned char*>(shared), global, valid});
  ++me.open;
}

void commit_copies() noexcept {
  thread_state& me = runner.now();
  me.groups.push_back(me.open);
  me.open = 0;
}

void wait_copies(unsigned groups_left) noexcept {
  thread_state& me = runner.now();
  while (me.groups.size() > groups_left) {
    const std::size_t count = me.groups.front();
    for (std::size_t i = 0; i < count; ++i) {
      if (me.copies[i].valid)
        std::memcpy(me.copies[i].shared, me.copies[i].global, 16);
      else
        std::memset(me.copies[i].shared, 0, 16);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(count));
    me.groups.erase(me.groups.begin());
  }
}

void nothing(const lane_payloads&) noexcept {}

void multiply_matrices(const lane_payloads& lanes) noexcept {
  double a[16][16], b[16][8], c[16][8];
  const auto half = [](const std::uint32_t* words, unsigned i) {
    return static_cast<double>(
      widen_bf16(static_cast<std::uint16_t>(words[i / 2] >> 16 * (i % 2))));
  };
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const mma_payload*>(lanes[lane]);
    const unsigned row = lane / 4, pair = lane % 4 * 2;
    for (unsigned i = 0; i < 8; ++i)
      a[row + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = half(mine.a, i);
    for (unsigned i = 0; i < 4; ++i) {
      b[pair + i % 2 + i / 2 * 8][row] = half(mine.b, i);
      c[row + i / 2 * 8][pair + i % 2] = static_cast<double>(mine.c[i]);
    }
  }
  for (unsigned m = 0; m < 16; ++m)
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned n = 0; n < 8; ++n)
        c[m][n] += a[m][k] * b[k][n];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const mma_payload*>(lanes[lane]);
    for (unsigned i = 0; i < 4; ++i)
      mine.c[i] = static_cast<float>(c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  }
}

namespace {

/// Matrix `i` of four is the 8 rows of 8 halves that lanes 8i .. 8i + 7 point to.
void load_four(const lane_payloads& lanes, bool trans) noexcept {
  std::uint16_t rows[4][8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const matrix_payload*>(lanes[lane]);
    std::memcpy(rows[lane / 8][lane % 8], mine.row, 16);
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4, pair = lane % 4 * 2;
      const std::uint16_t low = trans ? rows[i][pair][row] : rows[i][row][pair];
      const std::uint16_t high = trans ? rows[i][pair + 1][row] : rows[i][row][pair + 1];
      static_cast<const matrix_payload*>(lanes[lane])->r[i] =
        low | static_cast<std::uint32_t>(high) << 16;
    }
}

} // namespace

void load_matrices(const lane_payloads& lanes) noexcept {
  load_four(lanes, false);
}

void load_matrices_trans(const lane_payloads& lanes) noexcept {
  load_four(lanes, true);
}

void check_matrix_row(const void* row) noexcept {
  if (!runner.shared_holds(row, 16))
    runner.give_up("a matrix row lies outside of the shared memory, or is not aligned");
}

device_status run_grid(const char* kernel, const launch_shape& shape,
                       const std::function<void()>& body) {
  const auto broken = [&](const std::string& why) {
    return tl::unexpected(device_error{-1, "kernel " + std::string{kernel} + ": " + why});
  };
  if (shape.threads == 0 || shape.threads % 32 != 0 || shape.threads > 1024
      || shape.shared_bytes > shared_bytes_max || shape.grid[0] == 0 || shape.grid[1] == 0
      || shape.grid[2] == 0 || shape.grid[1] > 65535 || shape.grid[2] > 65535)
    return broken("no GPU takes " + std::to_string(shape.threads) + " threads, "
                  + std::to_string(shape.shared_bytes) + " bytes of shared memory, grid "
                  + std::to_string(shape.grid[0]) + " x " + std::to_string(shape.grid[1]) + " x "
                  + std::to_string(shape.grid[2]));
  const unsigned plane = shape.grid[0] * shape.grid[1];
  for (const unsigned at : ordered(plane * shape.grid[2], 0)) {
    const unsigned block[3] = {at % shape.grid[0], at / shape.grid[0] % shape.grid[1], at / plane};
    if (const auto why = runner.run(shape, block, body); !why.empty())
      return broken("block " + std::to_string(block[0]) + ", " + std::to_string(block[1]) + ", "
                    + std::to_string(block[2]) + ": " + why);
  }
  return {};
}

} // namespace simt::host
} // namespace rollcast::kernels::cuda
