#pragma once

#include "kernels/sampling.hpp"

#include <cstddef>
#include <cstdint>

namespace rollcast::kernels {

/// The drafted tokens of one sequence as a tree: nodes that lie together, parents before children.
/// Node 0 is the root: the last token that is certain.
struct tree_span {
  std::uint32_t begin; ///< First of its nodes among those of all trees.
  std::uint32_t nodes; ///< 0: neutral. 1: nothing was drafted.
};

/// What verification leaves of one tree.
struct accepted_path {
  std::uint32_t length; ///< Drafted tokens accepted; the path is one node longer.
  std::uint32_t last;   ///< Node of the last of them, 0 if none. Its sampled token is the next.
};

/// Accepts a drafted token iff its parent is accepted and it is the token sampled at the parent: so
/// the output is that of no speculation, token for token. Of siblings with the same token the first
/// counts.
/// @param tokens   [nodes of all trees]; that of a root is not read.
/// @param parents  [nodes of all trees], counted from the tree's first; that of a root is not read.
/// @param sampled  [nodes of all trees]: what was sampled after each node.
/// @param path     [nodes of all trees]: gets the nodes of the path, root first, from `begin` on.
inline accepted_path accept_draft(const tree_span& tree, const std::int32_t* tokens,
                                  const std::uint32_t* parents, const sampled_token* sampled,
                                  std::uint32_t* path) noexcept {
  accepted_path out{0, 0};
  if (tree.nodes == 0)
    return out;
  path[tree.begin] = 0;
  for (std::uint32_t node = 1; node < tree.nodes; ++node) {
    const std::size_t at = std::size_t{tree.begin} + node;
    if (parents[at] != out.last || tokens[at] != sampled[tree.begin + out.last].token)
      continue;
    out.last = node;
    path[tree.begin + ++out.length] = node;
  }
  return out;
}

} // namespace rollcast::kernels
