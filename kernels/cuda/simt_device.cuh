#pragma once

// kernels/cuda/simt.cuh on the GPU.

#include "kernels/cuda/runtime.hpp"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define ROLLCAST_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define ROLLCAST_DEVICE __device__ __forceinline__

namespace rollcast::kernels::cuda::simt {

struct alignas(16) vector_16 {
  std::uint32_t word[4];
};

// -- where --------------------------------------------------------------------

ROLLCAST_DEVICE unsigned thread_x() {
  return threadIdx.x;
}
ROLLCAST_DEVICE unsigned block_x() {
  return blockIdx.x;
}
ROLLCAST_DEVICE unsigned block_y() {
  return blockIdx.y;
}
ROLLCAST_DEVICE unsigned block_z() {
  return blockIdx.z;
}
ROLLCAST_DEVICE unsigned grid_x() {
  return gridDim.x;
}
ROLLCAST_DEVICE unsigned block_threads() {
  return blockDim.x;
}
ROLLCAST_DEVICE unsigned lane() {
  return threadIdx.x % 32;
}
ROLLCAST_DEVICE unsigned warp() {
  return threadIdx.x / 32;
}
ROLLCAST_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// -- together -----------------------------------------------------------------

ROLLCAST_DEVICE void sync_block() {
  __syncthreads();
}
ROLLCAST_DEVICE void sync_warp() {
  __syncwarp();
}
template <class T>
ROLLCAST_DEVICE T shuffle(T value, unsigned from) {
  return __shfl_sync(0xffffffffu, value, static_cast<int>(from));
}
template <class T>
ROLLCAST_DEVICE T shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(mask));
}
ROLLCAST_DEVICE bool any(bool flag) {
  return __any_sync(0xffffffffu, flag) != 0;
}
ROLLCAST_DEVICE std::uint32_t atomic_add(std::uint32_t* p, std::uint32_t value) {
  return atomicAdd(p, value);
}
ROLLCAST_DEVICE std::uint64_t atomic_add(std::uint64_t* p, std::uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), value);
}
ROLLCAST_DEVICE void fence() {
  __threadfence();
}
ROLLCAST_DEVICE float load_fresh(const float* p) {
  return __ldcg(p);
}

// -- numbers ------------------------------------------------------------------

ROLLCAST_DEVICE float fused(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
ROLLCAST_DEVICE double fused(double a, double b, double c) {
  return __fma_rn(a, b, c);
}
ROLLCAST_DEVICE float square_root(float x) {
  return __fsqrt_rn(x);
}
ROLLCAST_DEVICE std::uint32_t bits(float x) {
  return __float_as_uint(x);
}
ROLLCAST_DEVICE std::uint64_t bits(double x) {
  return static_cast<std::uint64_t>(__double_as_longlong(x));
}
ROLLCAST_DEVICE float from_bits(std::uint32_t u) {
  return __uint_as_float(u);
}
ROLLCAST_DEVICE double from_bits(std::uint64_t u) {
  return __longlong_as_double(static_cast<long long>(u));
}
ROLLCAST_DEVICE std::uint16_t to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
ROLLCAST_DEVICE std::uint32_t to_bf16x2(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
ROLLCAST_DEVICE float from_bf16(std::uint16_t b) {
  return __uint_as_float(static_cast<std::uint32_t>(b) << 16);
}

// -- matrices -----------------------------------------------------------------

ROLLCAST_DEVICE void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
ROLLCAST_DEVICE unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
ROLLCAST_DEVICE void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
ROLLCAST_DEVICE void load_matrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// -- memory -------------------------------------------------------------------

ROLLCAST_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile(
    "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
    "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
    : "memory");
}
ROLLCAST_DEVICE void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Groups>
ROLLCAST_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}
ROLLCAST_DEVICE vector_16 load_16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
ROLLCAST_DEVICE void store_16(void* p, const vector_16& v) {
  *static_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

} // namespace rollcast::kernels::cuda::simt
