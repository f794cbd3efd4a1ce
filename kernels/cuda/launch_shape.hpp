#pragma once

#include <cstddef>

namespace rollcast::kernels::cuda {

/// A grid, as the GPU is asked for it.
struct launch_shape {
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 32; ///< Of a block, whole warps.
  std::size_t shared_bytes = 0;
};

} // namespace rollcast::kernels::cuda
