#pragma once

#include "kernels/accept.hpp"
#include "kernels/cuda/runtime.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

/// `kernels::accept_draft` of all trees. All pointers are of the device.
struct accept_args {
  const tree_span* trees = nullptr; ///< [count]
  std::size_t count = 0;
  const std::int32_t* tokens = nullptr;   ///< [nodes in all]
  const std::uint32_t* parents = nullptr; ///< [nodes in all]
  const sampled_token* sampled = nullptr; ///< [nodes in all]
  accepted_path* out = nullptr;           ///< [count]
  std::uint32_t* path = nullptr;          ///< [nodes in all]
};
device_status accept_drafts(const accept_args& args, stream_handle stream);

} // namespace rollcast::kernels::cuda
