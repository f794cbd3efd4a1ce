#include "engine/backend/machine_rates.hpp"

#include "engine/base/aligned_buffer.hpp"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rollcast {

namespace {

using clock = std::chrono::steady_clock;

/// Runs `body(thread)` on all threads at once; returns the seconds of the best round.
double best_round_s(std::size_t threads, int rounds, const std::function<void(std::size_t)>& body) {
  double best = std::numeric_limits<double>::infinity();
  clock::time_point begin;
  std::barrier all{static_cast<std::ptrdiff_t>(threads)};
  const auto work = [&](std::size_t thread) {
    for (int round = 0; round < rounds; ++round) {
      all.arrive_and_wait();
      if (thread == 0)
        begin = clock::now();
      all.arrive_and_wait();
      body(thread);
      all.arrive_and_wait();
      if (thread == 0)
        best = std::min(best, std::chrono::duration<double>(clock::now() - begin).count());
    }
  };
  std::vector<std::jthread> others;
  for (std::size_t thread = 1; thread < threads; ++thread)
    others.emplace_back(work, thread);
  work(0);
  return best;
}

#if defined(__x86_64__)

constexpr long turns = 2'000'000;
constexpr int chains = 16; ///< Enough to hide the latency of one FMA.
volatile float sink;       ///< Keeps the compiler from dropping a loop.

__attribute__((target("avx512f"), noinline)) float fma_512() {
  __m512 acc[chains];
  for (int c = 0; c < chains; ++c) // different starts, or the compiler makes one chain of all
    acc[c] = _mm512_set1_ps(sink + static_cast<float>(c));
  const __m512 a = _mm512_set1_ps(sink);
  for (long turn = 0; turn < turns; ++turn)
#pragma GCC unroll 16
    for (auto& chain : acc)
      chain = _mm512_fmadd_ps(a, a, chain);
  for (int c = 1; c < chains; ++c)
    acc[0] = _mm512_add_ps(acc[0], acc[c]);
  return _mm512_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f,avx512bf16"), noinline)) float dot_512() {
  __m512 acc[chains];
  for (int c = 0; c < chains; ++c) // different starts, or the compiler makes one chain of all
    acc[c] = _mm512_set1_ps(sink + static_cast<float>(c));
  const auto a = (__m512bh)_mm512_set1_ps(sink);
  for (long turn = 0; turn < turns; ++turn)
#pragma GCC unroll 16
    for (auto& chain : acc)
      chain = _mm512_dpbf16_ps(chain, a, a);
  for (int c = 1; c < chains; ++c)
    acc[0] = _mm512_add_ps(acc[0], acc[c]);
  return _mm512_cvtss_f32(acc[0]);
}

__attribute__((target("avx2,fma"), noinline)) float fma_256() {
  __m256 acc[chains];
  for (int c = 0; c < chains; ++c)
    acc[c] = _mm256_set1_ps(sink + static_cast<float>(c));
  const __m256 a = _mm256_set1_ps(sink);
  for (long turn = 0; turn < turns; ++turn)
#pragma GCC unroll 16
    for (auto& chain : acc)
      chain = _mm256_fmadd_ps(a, a, chain);
  for (int c = 1; c < chains; ++c)
    acc[0] = _mm256_add_ps(acc[0], acc[c]);
  return _mm256_cvtss_f32(acc[0]);
}

/// Reads `bytes` (a multiple of 1024) as four streams side by side, each asked for ahead: one
/// stream alone leaves memory channels idle.
__attribute__((target("avx2"), noinline)) float read_all(const std::byte* data, std::size_t bytes) {
  constexpr std::size_t streams = 4;
  constexpr std::size_t ahead = 2048; ///< Bytes.
  const std::size_t share = bytes / streams;
  __m256i sum[streams] = {};
  for (std::size_t at = 0; at < share; at += 64)
#pragma GCC unroll 4
    for (std::size_t s = 0; s < streams; ++s) {
      const std::byte* from = data + s * share + at;
      _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
      const auto* lanes = reinterpret_cast<const __m256i*>(from);
      sum[s] = _mm256_xor_si256(
        sum[s], _mm256_xor_si256(_mm256_load_si256(lanes), _mm256_load_si256(lanes + 1)));
    }
  const __m256i all =
    _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return _mm256_cvtss_f32(_mm256_castsi256_ps(all));
}

double rate_of(std::size_t threads, double operations, float (*loop)()) {
  const double seconds = best_round_s(threads, 5, [&](std::size_t) { sink = loop(); });
  return static_cast<double>(threads) * static_cast<double>(turns) * chains * operations / seconds;
}

#endif

} // namespace

machine_rates measure_machine(std::size_t threads) {
  machine_rates rates;
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    return rates;
  const bool wide = __builtin_cpu_supports("avx512f");
  rates.f32_flops_per_s = rate_of(threads, wide ? 32 : 16, wide ? fma_512 : fma_256);
  rates.bf16_flops_per_s =
    __builtin_cpu_supports("avx512bf16") ? rate_of(threads, 64, dot_512) : rates.f32_flops_per_s;
  constexpr std::size_t share = std::size_t{256} << 20;
  const auto memory = aligned_buffer::make(threads * share);
  if (!memory)
    return rates;
  std::memset(memory->data(), 1, memory->size()); // pages that were never written share one frame
  const double seconds = best_round_s(threads, 7, [&](std::size_t thread) {
    sink = read_all(memory->data() + thread * share, share);
  });
  rates.read_bytes_per_s = static_cast<double>(memory->size()) / seconds;
#else
  static_cast<void>(threads);
#endif
  return rates;
}

} // namespace rollcast
