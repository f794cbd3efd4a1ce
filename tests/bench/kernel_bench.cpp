// Times every CPU kernel but the GEMM on the shapes of the speed model (hidden 768, 12/4 heads of
// 64, FFN 2048, vocabulary 32000), on one thread, beside this machine's measured limits.
//   kernel_bench [instruction set]
#include "kernels/attention.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/rope.hpp"
#include "kernels/sampling.hpp"
#include "tests/unit/kernels/pattern.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string_view>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rollcast::test {
namespace {

using namespace kernels;

/// Least seconds of one call, over enough calls to fill a third of a second.
template <class F>
double seconds(F call) {
  using clock = std::chrono::steady_clock;
  double best = 1e9, total = 0;
  for (int i = 0; i < 3 || (total < 0.3 && i < 2000); ++i) {
    const auto begin = clock::now();
    call();
    const double s = std::chrono::duration<double>(clock::now() - begin).count();
    best = std::min(best, s);
    total += s;
  }
  return best;
}

/// Memory in huge pages where the kernel gives them, as the engine maps its KV cache.
std::byte* map_bytes(std::size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return static_cast<std::byte*>(p);
}

double read_bandwidth() {
  constexpr std::size_t bytes = std::size_t{512} << 20;
  const auto* data = reinterpret_cast<const std::uint64_t*>(map_bytes(bytes));
  volatile std::uint64_t sink = 0;
  const double s = seconds([&] {
    std::uint64_t sum[8] = {};
    for (std::size_t i = 0; i < bytes / 8; i += 8)
      for (std::size_t j = 0; j < 8; ++j)
        sum[j] += data[i + j];
    sink = sink + std::accumulate(sum, sum + 8, std::uint64_t{0});
  });
  munmap(const_cast<std::uint64_t*>(data), bytes);
  return static_cast<double>(bytes) / s;
}

#if defined(__x86_64__)
/// f32 FLOP/s of sixteen independent chains of 512-bit FMAs.
__attribute__((target("avx512f"))) double avx512_fma_rate() {
  constexpr int chains = 16, rounds = 200'000;
  __m512 acc[chains];
  for (auto& a : acc)
    a = _mm512_set1_ps(1.0f);
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  const double s = seconds([&]() __attribute__((target("avx512f"))) {
    __m512 a[chains];
    for (int i = 0; i < chains; ++i)
      a[i] = acc[i];
    for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
      for (int i = 0; i < chains; ++i)
        a[i] = _mm512_fmadd_ps(a[i], x, y);
    }
    for (int i = 0; i < chains; ++i)
      acc[i] = a[i];
  });
  volatile float sink = 0;
  for (const auto& a : acc)
    sink = sink + _mm512_cvtss_f32(a);
  return 2.0 * 16 * chains * rounds / s;
}
#endif

struct attention_bench {
  std::size_t heads = 12, kv_heads = 4, head_dim = 64;
  kv_layout kv;
  std::vector<std::vector<std::uint32_t>> tables;
  std::vector<attention_sequence> sequences;
  std::vector<attention_item> items;
  std::vector<float> q, out;
  std::size_t bytes = 0, keys = 0, layers;

  /// `count` sequences of `rows` new rows that end at about `context`, in `layers` caches one after
  /// the other, so that the KV comes from memory as it does in an engine.
  attention_bench(std::size_t count, std::size_t rows, std::size_t context, dtype type,
                  std::size_t dim, std::size_t layers)
    : head_dim{dim}, layers{layers} {
    kv = {nullptr, 16, kv_heads, head_dim, type};
    std::size_t blocks = 0, row = 0;
    for (std::size_t s = 0; s < count; ++s) {
      const std::size_t length = context + (rows == 1 ? s : 0);
      blocks += (length + 15) / 16;
      keys += (2 * (length - rows) + rows + 1) * rows / 2;
    }
    bytes = blocks * kv.block_bytes();
    kv.data = map_bytes(bytes * layers);
    auto* x = reinterpret_cast<std::uint16_t*>(kv.data);
    for (std::size_t i = type == dtype::f32 ? 1 : 0; i < bytes * layers / 2;
         i += type == dtype::f32 ? 2 : 1)
      x[i] = static_cast<std::uint16_t>(0x3e00 + i % 97);
    std::vector<std::uint32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    prng random{1};
    for (std::size_t i = blocks; i > 1; --i)
      std::swap(order[i - 1], order[random.below(i)]);
    auto next = order.begin();
    for (std::size_t s = 0; s < count; ++s, row += rows) {
      const std::size_t length = context + (rows == 1 ? s : 0);
      tables.emplace_back(next, next + static_cast<std::ptrdiff_t>((length + 15) / 16));
      next += static_cast<std::ptrdiff_t>((length + 15) / 16);
      sequences.push_back({tables.back().data(), static_cast<std::uint32_t>(row),
                           static_cast<std::uint32_t>(rows),
                           static_cast<std::uint32_t>(length - rows)});
    }
    items.resize(attention_items_max(count, row, kv_heads));
    items.resize(plan_attention(sequences.data(), count, kv_heads, items.data()));
    q = pattern(row * heads * head_dim, 1);
    out.resize(q.size());
  }
  ~attention_bench() { munmap(kv.data, bytes * layers); }
  attention_bench(const attention_bench&) = delete;

  void run(std::size_t thread, std::size_t threads) {
    const std::size_t stride = heads * head_dim;
    attention_args args{q.data(), stride, out.data(), stride, heads, 0.125f, kv, sequences.data()};
    for (std::size_t layer = 0; layer < layers; ++layer, args.kv.data += bytes)
      for (std::size_t i = thread; i < items.size(); i += threads)
        attention_cpu(args, items[i]);
  }

  void report(const char* name, double bandwidth) {
    for (const std::size_t threads : {1u, 2u}) {
      const double s = seconds([&] {
                         std::vector<std::thread> others;
                         for (std::size_t t = 1; t < threads; ++t)
                           others.emplace_back([this, t, threads] { run(t, threads); });
                         run(0, threads);
                         for (auto& t : others)
                           t.join();
                       })
                       / static_cast<double>(layers);
      const double flops = 4.0 * static_cast<double>(keys * heads * head_dim);
      std::printf(
        "%-34s %zu thread(s) %9.1f us/layer  %6.1f GFLOP/s  KV %5.1f GB/s (%.0f %% of read)\n",
        name, threads, s * 1e6, flops / s * 1e-9, static_cast<double>(bytes) / s * 1e-9,
        static_cast<double>(bytes) / s / bandwidth * 100);
    }
  }
};

void row_benches() {
  constexpr std::size_t rows = 64;
  const auto x = pattern(rows * 4096, 1, 2.0f), w = pattern(768, 2);
  std::vector<float> y(rows * 4096);
  const auto line = [](const char* name, double s, double elements) {
    std::printf("%-34s %9.1f ns/row  %6.3f ns/element\n", name, s / rows * 1e9,
                s / rows * 1e9 / elements);
  };
  line("rms_norm 768", seconds([&] {
         rms_norm_cpu({x.data(), w.data(), y.data(), 768, 768, 768, 1e-6f}, 0, rows);
       }),
       768);
  line("silu_mul 2048", seconds([&] {
         silu_mul_cpu({x.data(), 4096, y.data(), 2048, 2048}, 0, rows);
       }),
       2048);
  std::vector<float> table(512 * 64);
  rope_table({64, 1e6, rope_scaling::none, 1, 1, 4, 8192}, 512, table.data());
  std::vector<row_place> places;
  for (std::uint32_t r = 0; r < rows; ++r)
    places.push_back({256 + r, r});
  kv_layout kv{nullptr, 16, 4, 64, dtype::f32};
  kv.data = map_bytes(rows * kv.block_bytes());
  auto qkv = pattern(rows * 1280, 5);
  line("qkv_rope_append 12+4+4 x 64, norms", seconds([&] {
         qkv_rope_append_cpu(
           {qkv.data(), 1280, 12, 4, w.data(), w.data(), 1e-6f, table.data(), places.data(), kv}, 0,
           rows);
       }),
       1280);
}

void sample_benches() {
  for (const std::size_t vocabulary : {32'000u, 151'936u}) {
    std::byte* scratch = map_bytes(sample_scratch_bytes(vocabulary));
    for (const float spread : {3.0f, 20.0f}) {
      const auto logits = pattern(vocabulary, 9, spread);
      const auto line = [&](const char* name, sample_params params) {
        std::uint32_t position = 0;
        const double s = seconds([&] {
          params.position = position++;
          sample_token_cpu(logits.data(), vocabulary, params, scratch);
        });
        std::printf("sample %zu spread %2.0f %-18s %9.1f us/row\n", vocabulary,
                    static_cast<double>(spread), name, s * 1e6);
      };
      line("temperature 1", {});
      line("temperature 0", {.temperature = 0.0f});
      line("top-p 0.95", {.top_p = 0.95f});
      line("top-k 50, top-p 0.9", {.top_p = 0.9f, .top_k = 50});
      line("min-p 0.05", {.min_p = 0.05f});
    }
    munmap(scratch, sample_scratch_bytes(vocabulary));
  }
}

} // namespace
} // namespace rollcast::test

int main(int argc, char** argv) {
  using namespace rollcast::test;
  if (argc > 1 && !rollcast::kernels::use_instruction_set(argv[1])) {
    std::fprintf(stderr, "kernel_bench: this machine cannot run '%s'\n", argv[1]);
    return 2;
  }
  const double bandwidth = read_bandwidth();
  std::printf("read bandwidth, one thread: %.1f GB/s\n", bandwidth * 1e-9);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f"))
    std::printf("f32 FMA rate, one thread: %.1f GFLOP/s\n", avx512_fma_rate() * 1e-9);
#endif
  using rollcast::kernels::dtype;
  attention_bench{64, 1, 256, dtype::f32, 64, 12}.report("decode 64 x 256..319, f32", bandwidth);
  attention_bench{64, 1, 256, dtype::bf16, 64, 12}.report("decode 64 x 256..319, bf16", bandwidth);
  attention_bench{1, 1, 256, dtype::f32, 64, 1}.report("decode 1 x 256, f32", bandwidth);
  attention_bench{4, 1, 4096, dtype::f32, 64, 12}.report("decode 4 x 4096, f32", bandwidth);
  attention_bench{1, 512, 512, dtype::f32, 64, 1}.report("prefill 512, f32", bandwidth);
  attention_bench{1, 512, 512, dtype::bf16, 64, 1}.report("prefill 512, bf16", bandwidth);
  attention_bench{1, 512, 4096, dtype::f32, 64, 1}.report("prefill 512 of 4096, f32", bandwidth);
  attention_bench{1, 512, 512, dtype::f32, 128, 1}.report("prefill 512, head_dim 128", bandwidth);
  row_benches();
  sample_benches();
}
