#pragma once

#include "kernels/cuda/runtime.hpp"
#include "kernels/sampling.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

/// One token for each row of logits, with the bits of `sample_token_cpu` for the same logits:
/// token, log-probability and kept mass (tests/unit/cuda/sampling_test.cpp). All pointers are of
/// the device, those in `params` too.
struct sample_args {
  const float* logits = nullptr; ///< [rows, vocabulary].
  std::size_t logits_stride = 0;
  std::size_t rows = 0;
  std::size_t vocabulary = 0;            ///< At most 2^20.
  const sample_params* params = nullptr; ///< [rows].
  sampled_token* out = nullptr;          ///< [rows].
};

/// Queues the choice. One block a row; several passes over the row, which stays in L2. Without
/// filters three, one of them Philox; top-k and top-p add a radix selection each, of eight passes
/// at most.
device_status sample(const sample_args& args, stream_handle stream);

/// Log-probability of a given token of each row: the bits of `token_logprob_cpu`.
struct score_args {
  const float* logits = nullptr; ///< [rows, vocabulary].
  std::size_t logits_stride = 0;
  std::size_t rows = 0;
  std::size_t vocabulary = 0;
  const float* temperatures = nullptr;  ///< [rows].
  const std::int32_t* tokens = nullptr; ///< [rows].
  float* out = nullptr;                 ///< [rows].
};
device_status score(const score_args& args, stream_handle stream);

} // namespace rollcast::kernels::cuda
