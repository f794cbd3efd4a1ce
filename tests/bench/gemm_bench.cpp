// Measures the GEMM beside the machine's own limits, in one run: the rate of independent FMAs (and
// of vdpbf16ps) in registers, and the rate of reading memory. One line of a table for each shape,
// number of rows, profile and number of threads.
#include "engine/backend/machine_rates.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/gemm.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

namespace rollcast::bench {
namespace {

using kernels::arithmetic;
using kernels::dtype;

double now_s() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

/// Runs `body(thread)` on `threads` threads; returns the seconds of the best of `repeats` rounds.
double best_s(unsigned threads, int repeats, const std::function<void(unsigned)>& body) {
  double best = 1e30;
  double begin = 0;
  std::barrier all{static_cast<std::ptrdiff_t>(threads)};
  const auto work = [&](unsigned thread) {
    for (int i = 0; i < repeats; ++i) {
      all.arrive_and_wait();
      if (thread == 0)
        begin = now_s();
      all.arrive_and_wait();
      body(thread);
      all.arrive_and_wait();
      if (thread == 0)
        best = std::min(best, now_s() - begin);
    }
  };
  std::vector<std::thread> others;
  for (unsigned thread = 1; thread < threads; ++thread)
    others.emplace_back(work, thread);
  work(0);
  for (auto& other : others)
    other.join();
  return best;
}

/// Zeroed memory on huge pages where the system gives them.
class mapped {
public:
  explicit mapped(std::size_t bytes) : bytes_{(bytes + (2u << 20)) & ~std::size_t{(2u << 20) - 1}} {
    void* p = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
      std::abort();
    ::madvise(p, bytes_, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(p);
    std::memset(data_, 0, bytes_);
  }
  mapped(const mapped&) = delete;
  mapped& operator=(const mapped&) = delete;
  ~mapped() { ::munmap(data_, bytes_); }
  std::byte* data() const { return data_; }

private:
  std::size_t bytes_;
  std::byte* data_;
};

// -- the product --------------------------------------------------------------

struct shape {
  std::size_t n, k;
};
constexpr shape shapes[] = {{1280, 768}, {768, 768},   {4096, 768},
                            {768, 2048}, {32000, 768}, {3584, 18944}};

using limits = std::array<machine_rates, 2>; // with one thread and with two

/// One timed pass over several copies of the matrix, so that weights come from memory, as they do
/// in a model: copies fill about `footprint` bytes.
void run_case(const shape& s, std::size_t rows, arithmetic how, unsigned threads,
              std::size_t footprint, const std::byte* pool, const limits& limit) {
  const std::size_t bytes = kernels::packed_bytes(dtype::bf16, s.n, s.k);
  const std::size_t copies = std::max<std::size_t>(footprint / bytes, 1);
  const std::vector<float> x(rows * s.k, 0.5f);
  mapped packed{kernels::packed_rows_bytes(how, rows, s.k)};
  mapped y{rows * s.n * sizeof(float)};
  const kernels::packed_rows px{packed.data(), rows, s.k, how};
  const std::size_t panels = kernels::panel_count(s.n);
  const std::size_t tiles = kernels::row_tile_count(how, rows);
  const double pack_s =
    best_s(1, 5, [&](unsigned) { kernels::pack_rows(x.data(), s.k, px, 0, tiles); });
  const double all_s = best_s(threads, rows >= 64 ? 3 : 5, [&](unsigned t) {
    for (std::size_t copy = 0; copy < copies; ++copy)
      kernels::gemm_cpu({{pool + copy * bytes, s.n, s.k, dtype::bf16},
                         px,
                         reinterpret_cast<float*>(y.data()),
                         s.n,
                         nullptr,
                         false},
                        panels * t / threads, panels * (t + 1) / threads);
  });
  const double seconds = all_s / static_cast<double>(copies);
  const double rate = 2.0 * static_cast<double>(rows * s.n * s.k) / seconds;
  const double read = static_cast<double>(bytes) / seconds;
  const auto& most = limit[threads - 1];
  const double peak = how == arithmetic::f32 ? most.f32_flops_per_s : most.bf16_flops_per_s;
  std::printf(
    "| %4zu -> %5zu | %4zu | %-4s | %u | %8.1f | %6.1f | %5.1f %% | %5.1f | %5.1f %% | %6.2f |\n",
    s.k, s.n, rows, how == arithmetic::f32 ? "f32" : "bf16", threads, seconds * 1e6, rate * 1e-9,
    rate / peak * 100, read * 1e-9, read / most.read_bytes_per_s * 100, pack_s * 1e6);
}

int run(std::span<char*> args) {
  std::vector<std::size_t> rows{1, 4, 16, 64, 512};
  std::string_view set;
  if (args.size() > 1)
    set = args[1];
  if (args.size() > 2)
    rows.clear();
  for (std::size_t i = 2; i < args.size(); ++i)
    rows.push_back(std::strtoul(args[i], nullptr, 10));
  if (set == "best")
    set = "";
  if (kernels::instruction_sets().empty() || !kernels::use_instruction_set(set)) {
    std::fprintf(stderr, "usage: gemm_bench [best|avx512-bf16|avx512|avx2|neon] [rows...]\n");
    return 2;
  }
  constexpr std::size_t pool_bytes = std::size_t{512} << 20;
  const mapped pool{pool_bytes};
  limits limit{};
  for (unsigned threads = 1; threads <= 2; ++threads) {
    const auto most = limit[threads - 1] = measure_machine(threads);
    std::printf("%u thread%s: f32 FMA %.0f GFLOP/s, vdpbf16ps %.0f GFLOP/s, reads %.1f GB/s\n",
                threads, threads == 1 ? "" : "s", most.f32_flops_per_s * 1e-9,
                most.bf16_flops_per_s * 1e-9, most.read_bytes_per_s * 1e-9);
  }
  std::printf(
    "| K -> N | rows | profile | threads | us | GFLOP/s | of FMA rate | GB/s | of reads | "
    "pack us |\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const arithmetic how : {arithmetic::f32, arithmetic::bf16})
    for (const std::size_t count : rows)
      for (unsigned threads = 1; threads <= 2; ++threads)
        for (const shape& s : shapes)
          run_case(s, count, how, threads, count >= 64 ? pool_bytes / 8 : pool_bytes, pool.data(),
                   limit);
  return 0;
}

} // namespace
} // namespace rollcast::bench

int main(int argc, char** argv) {
  return rollcast::bench::run({argv, static_cast<std::size_t>(argc)});
}
