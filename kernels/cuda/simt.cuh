#pragma once

// What a kernel may ask of the machine, and the only place that knows the machine: nvcc compiles
// the kernels for the GPU (simt_device.cuh), g++ compiles the same sources with ROLLCAST_SIMT_HOST
// for the emulator (simt_host.cuh). Both define, in namespace `simt`:
//
//   thread_x() block_x() block_y() block_z() grid_x() block_threads()   unsigned
//   lane() warp()                           thread_x() modulo and by 32
//   shared_memory()                         the block's dynamic shared memory, 128-byte aligned
//   sync_block() sync_warp()                barriers with memory ordering
//   shuffle(v, lane) shuffle_xor(v, mask)   of a full warp; 4- and 8-byte values
//   any(flag)                               of a full warp
//   fused(a, b, c)                          fma, rounded once; f32 and f64
//   bits(x) from_bits(u)                    f32 and f64
//   to_bf16(x) to_bf16x2(low, high) from_bf16(bits)
//   mma_bf16(c, a, b)                       c[16 x 8] += a[16 x 16] * b[16 x 8], fragments as PTX's
//                                           mma.m16n8k16.row.col.f32.bf16.bf16.f32
//   load_matrix_x4(r, row) load_matrix_x4_trans(r, row)   ldmatrix: row is of the lane's address
//   copy_async_16(shared, global, valid)    cp.async of 16 bytes, zeros unless valid
//   copy_async_commit() copy_async_wait<N>()
//   load_16(p) store_16(p, v)               16 aligned bytes
//   atomic_add(p, v)                        u32 and u64, global or shared; returns what was there
//   fence()                                 __threadfence
//   load_fresh(p)                           what another block has written before its fence
//
// A warp operation is called by all 32 lanes, a barrier by every thread of the block: the emulator
// stops a kernel that breaks this, and a kernel that reads what a missing wait or barrier has not
// delivered finds NaN.

#if defined(ROLLCAST_SIMT_HOST)
#include "kernels/cuda/simt_host.cuh"
#else
#include "kernels/cuda/simt_device.cuh"
#endif
