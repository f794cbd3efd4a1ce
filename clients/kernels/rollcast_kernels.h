/// The engine's CPU kernels (numerics profile cpu-f32-v1) for programs that are not the engine,
/// such as a trainer whose forward pass must give the bits of the rollout. C, plain pointers,
/// row-major float arrays without gaps. Every function computes its rows with the kernel that the
/// engine uses; what each does to the last bit is written in kernels/*.hpp under Numerics.
///
/// Functions that return `int` return 0, or 1 when they refuse their arguments or lack memory; then
/// `rollcast_kernels_error` says why and nothing was computed. NULL is refused where data must be.
/// Calls may come from any thread; they run one after another, each on the library's own threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Number of this interface. It grows with every change that an older caller would not survive.
#define ROLLCAST_KERNELS_ABI 1
uint32_t rollcast_kernels_abi(void);

/// Name of the numerics profile whose bits the functions give: "cpu-f32-v1".
const char* rollcast_kernels_profile(void);

/// Hash of that profile, 32 hexadecimal digits, as workers report it.
const char* rollcast_kernels_profile_hash(void);

/// Why this thread's last call that returned 1 failed: one line, valid until its next call.
const char* rollcast_kernels_error(void);

/// The best instruction set of this machine, or the one forced; "" if no kernel can run here.
const char* rollcast_kernels_instruction_set(void);

/// Forces an instruction set ("" for the best). Changes no bit; for tests and benchmarks.
int rollcast_kernels_use_instruction_set(const char* name);

/// Sets how many threads share each call, 1 to 1024. Changes no bit. Default: one a processor.
int rollcast_kernels_set_threads(uint32_t threads);

/// Element types of weights.
enum rollcast_dtype { ROLLCAST_F32 = 0, ROLLCAST_BF16 = 1, ROLLCAST_F16 = 2 };

/// Bytes of a packed [n, k] matrix of type F32 or BF16; 0 for another type.
size_t rollcast_packed_bytes(int dtype, size_t n, size_t k);

/// Copies `source` ([rows, k], of `source_dtype`) into output columns [column, column + rows) of
/// the packed [n, k] matrix `out`. Several weights may share a matrix; the caller zeroes it before
/// the first (the padding must be zero). BF16 <- F32 or F16 rounds once, to nearest even.
/// @param out `rollcast_packed_bytes` bytes, 64-byte aligned.
int rollcast_pack_weights(const void* source, int source_dtype, size_t rows, size_t k,
                          size_t column, void* out, int dtype, size_t n);

/// y[rows, n] = x[rows, k] * w^T, then + bias[n] if not NULL, then + y as it was if `accumulate`.
/// @param packed of type `dtype` and shape [n, k], 64-byte aligned.
int rollcast_linear(const void* packed, int dtype, size_t n, size_t k, const float* x, size_t rows,
                    const float* bias, int accumulate, float* y);

/// y[rows, dim] = RMSNorm of x's rows, scaled by w[dim]. `y` may be `x`.
int rollcast_rms_norm(const float* x, const float* w, float eps, size_t rows, size_t dim, float* y);

/// out[rows, dim] = silu(gate_up[:, :dim]) * gate_up[:, dim:], of gate_up[rows, 2 * dim].
int rollcast_silu_mul(const float* gate_up, size_t rows, size_t dim, float* out);

/// out[rows, dim] = the rows of table[vocabulary, dim] (of `dtype`) that `tokens` name, widened.
int rollcast_embed(const void* table, int dtype, size_t vocabulary, size_t dim,
                   const int32_t* tokens, size_t rows, float* out);

/// How rotary frequencies are made; `scaling` 0: none, 1: linear, 2: llama3.
struct rollcast_rope {
  size_t head_dim;
  double theta;
  int32_t scaling;
  double factor;
  double low_freq_factor;
  double high_freq_factor;
  double original_max_position;
};

/// Fills cos_sin[positions, head_dim]: cosines of the head_dim / 2 frequencies, then sines.
int rollcast_rope_table(const struct rollcast_rope* rope, size_t positions, float* cos_sin);

/// Whole sequences, one after another, each beginning at position 0.
struct rollcast_attention {
  size_t heads; ///< A multiple of `kv_heads`.
  size_t kv_heads;
  size_t head_dim;         ///< A multiple of 16.
  const float* q_norm;     ///< [head_dim], or NULL: no norm of q heads.
  const float* k_norm;     ///< [head_dim], or NULL: no norm of k heads.
  float eps;               ///< Of the norms.
  const float* cos_sin;    ///< From `rollcast_rope_table`.
  size_t positions;        ///< Rows of `cos_sin`; no sequence may be longer.
  const uint32_t* lengths; ///< [sequences], each at least 1.
  size_t sequences;
};

/// out[rows, heads * head_dim] = causal attention within each sequence, after the norms and the
/// rotation of q and k. `rows` is the sum of the lengths.
/// @param qkv [rows, (heads + 2 * kv_heads) * head_dim]: q heads, k heads, v heads. Not changed.
int rollcast_attend(const struct rollcast_attention* how, const float* qkv, float* out);

/// out[rows] = log_softmax(logits[r] / temperature[r])[token[r]] of logits[rows, vocabulary]; a
/// temperature of 0 counts as 1, as it does where a rollout is greedy.
int rollcast_token_logprobs(const float* logits, size_t rows, size_t vocabulary,
                            const float* temperatures, const int32_t* tokens, float* out);

/// Writes the two halves of the XXH3-128 of `bytes` bytes: tells whether a weight has changed.
int rollcast_hash(const void* data, size_t bytes, uint64_t out[2]);

#ifdef __cplusplus
}
#endif
