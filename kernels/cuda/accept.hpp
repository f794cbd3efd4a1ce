#pragma once

#include "kernels/cuda/runtime.hpp"
#include "kernels/sampling.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels::cuda {

/// The drafted tokens of one sequence as a tree. Node 0 is the root: the last token that is
/// certain. Nodes of a sequence are consecutive, parents before children.
struct draft_tree {
  std::uint32_t node_begin; ///< First of its nodes in `tokens`, `parents` and `sampled`.
  std::uint32_t nodes;      ///< 0: neutral. 1: nothing was drafted.
};

/// What verification leaves of one tree.
struct accepted_path {
  std::uint32_t length; ///< Drafted tokens accepted; the path is one token longer.
  std::uint32_t last;   ///< Node of the last of them, 0 if none. Its sampled token is the next.
};

/// Accepts a drafted token iff its parent is accepted and it is the token sampled at the parent: so
/// the output is that of no speculation, token for token. Of siblings with the same token the first
/// counts.
/// All pointers are of the device.
struct accept_args {
  const draft_tree* trees = nullptr; ///< [count]
  std::size_t count = 0;
  const std::int32_t* tokens = nullptr; ///< [nodes in all]
  const std::uint32_t* parents =
    nullptr; ///< [nodes in all], relative to `node_begin`; root's unread.
  const sampled_token* sampled = nullptr; ///< [nodes in all]: what was sampled after each node.
  accepted_path* out = nullptr;           ///< [count]
  std::uint32_t* path =
    nullptr; ///< [nodes in all]: nodes of the path, root first, from `node_begin`.
};
device_status accept_drafts(const accept_args& args, stream_handle stream);

} // namespace rollcast::kernels::cuda
