#pragma once

// kernels/cuda/simt.cuh on the host: every thread of a block is a fiber of one host thread, run
// until it reaches a warp operation or a barrier (simt_host.cpp).

#include "kernels/cuda/runtime.hpp"
#include "kernels/types.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#define ROLLCAST_KERNEL(threads, blocks) void
#define ROLLCAST_DEVICE inline

namespace rollcast::kernels::cuda::simt {

struct alignas(16) vector_16 {
  std::uint32_t word[4];
};

// -- the emulator's side ------------------------------------------------------

/// What one lane brings to a warp operation.
using lane_payloads = void* [32];
using warp_operation = void (*)(const lane_payloads& lanes);

/// Where a thread is, as its kernel may see it.
struct place {
  unsigned thread, block[3], grid[3], threads;
  unsigned char* shared;
};

namespace host {
/// The place of the thread that is running. @pre inside a kernel.
const place& here() noexcept;
/// Waits until all 32 lanes have come to the same operation; it is done once, for all of them.
void meet_warp(warp_operation operation, void* payload) noexcept;
void meet_block() noexcept;
void begin_copy(void* shared, const void* global, bool valid) noexcept;
void commit_copies() noexcept;
void wait_copies(unsigned groups_left) noexcept;
/// Ends the kernel if 16 bytes at `row` are not of the shared memory, or not aligned.
void check_matrix_row(const void* row) noexcept;

// The warp operations, whose payloads are those of the functions below.
void multiply_matrices(const lane_payloads& lanes) noexcept;
void load_matrices(const lane_payloads& lanes) noexcept;
void load_matrices_trans(const lane_payloads& lanes) noexcept;
void nothing(const lane_payloads& lanes) noexcept;

struct mma_payload {
  float* c;
  const std::uint32_t* a;
  const std::uint32_t* b;
};
struct matrix_payload {
  std::uint32_t* r;
  const void* row;
};
template <class T>
struct shuffle_payload {
  T in, out;
  unsigned from;
};
template <class T>
void exchange(const lane_payloads& lanes) noexcept {
  for (auto* lane : lanes) {
    auto* const mine = static_cast<shuffle_payload<T>*>(lane);
    mine->out = static_cast<const shuffle_payload<T>*>(lanes[mine->from % 32])->in;
  }
}
} // namespace host

// -- where --------------------------------------------------------------------

inline unsigned thread_x() {
  return host::here().thread;
}
inline unsigned block_x() {
  return host::here().block[0];
}
inline unsigned block_y() {
  return host::here().block[1];
}
inline unsigned block_z() {
  return host::here().block[2];
}
inline unsigned grid_x() {
  return host::here().grid[0];
}
inline unsigned block_threads() {
  return host::here().threads;
}
inline unsigned lane() {
  return host::here().thread % 32;
}
inline unsigned warp() {
  return host::here().thread / 32;
}
inline unsigned char* shared_memory() {
  return host::here().shared;
}

// -- together -----------------------------------------------------------------

inline void sync_block() {
  host::meet_block();
}
inline void sync_warp() {
  host::meet_warp(host::nothing, nullptr);
}
template <class T>
T shuffle(T value, unsigned from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  host::shuffle_payload<T> payload{value, {}, from};
  host::meet_warp(host::exchange<T>, &payload);
  return payload.out;
}
template <class T>
T shuffle_xor(T value, unsigned mask) {
  return shuffle(value, lane() ^ mask);
}
inline bool any(bool flag) {
  unsigned seen = flag;
  for (unsigned mask = 16; mask > 0; mask /= 2)
    seen |= shuffle_xor(seen, mask);
  return seen != 0;
}
/// Blocks and threads run one after another, so that a plain addition is atomic.
template <class T>
T atomic_add(T* p, T value) {
  const T before = *p;
  *p = before + value;
  return before;
}
inline void fence() {}
inline float load_fresh(const float* p) {
  return *p;
}

// -- numbers ------------------------------------------------------------------

inline float fused(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double fused(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline float square_root(float x) {
  return std::sqrt(x);
}
inline std::uint32_t bits(float x) {
  return std::bit_cast<std::uint32_t>(x);
}
inline std::uint64_t bits(double x) {
  return std::bit_cast<std::uint64_t>(x);
}
inline float from_bits(std::uint32_t u) {
  return std::bit_cast<float>(u);
}
inline double from_bits(std::uint64_t u) {
  return std::bit_cast<double>(u);
}
inline std::uint16_t to_bf16(float x) {
  return round_bf16(x);
}
inline std::uint32_t to_bf16x2(float low, float high) {
  return round_bf16(low) | static_cast<std::uint32_t>(round_bf16(high)) << 16;
}
inline float from_bf16(std::uint16_t b) {
  return widen_bf16(b);
}

// -- matrices -----------------------------------------------------------------

inline void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  host::mma_payload payload{c, a, b};
  host::meet_warp(host::multiply_matrices, &payload);
}
inline void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  host::check_matrix_row(row);
  host::matrix_payload payload{r, row};
  host::meet_warp(host::load_matrices, &payload);
}
inline void load_matrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  host::check_matrix_row(row);
  host::matrix_payload payload{r, row};
  host::meet_warp(host::load_matrices_trans, &payload);
}

// -- memory -------------------------------------------------------------------

inline void copy_async_16(void* shared, const void* global, bool valid) {
  host::begin_copy(shared, global, valid);
}
inline void copy_async_commit() {
  host::commit_copies();
}
template <int Groups>
void copy_async_wait() {
  host::wait_copies(Groups);
}
inline vector_16 load_16(const void* p) {
  vector_16 v;
  std::memcpy(&v, __builtin_assume_aligned(p, 16), 16);
  return v;
}
inline void store_16(void* p, const vector_16& v) {
  std::memcpy(__builtin_assume_aligned(p, 16), &v, 16);
}

} // namespace rollcast::kernels::cuda::simt
