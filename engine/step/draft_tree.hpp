#pragma once

#include "engine/draft/drafter.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace rollcast {

/// A run of a draft in which each token follows the one before it.
struct draft_path {
  std::uint32_t begin = 0;  ///< Its first node; it ends where the next path begins.
  std::uint32_t depth = 1;  ///< Of the first node; a child of the root has depth 1.
  std::int32_t parent = -1; ///< Node that it follows; -1: the response's last token.
};

/// What a draft must fit in.
struct draft_bounds {
  std::uint32_t depth_max = 0;
  std::uint32_t nodes_max = 0;
  std::uint32_t vocabulary = 0;
  std::uint32_t position = 0; ///< Of a child of the root.
  std::uint32_t block_tokens = 1;
  std::uint32_t blocks_held = 0; ///< Of the response; enough for `depth_max`.
  std::uint32_t blocks_free = 0; ///< That can be had for this step.
};

/// Cuts a tree into paths: every node is followed by its first child, and each other child begins a
/// path of its own, behind its parent's. The first path lies in the response's blocks; a branch, as
/// each other path is called, in spare ones, from the block of its first node on. Keeps its memory.
class draft_tree {
public:
  /// Puts `draft` in the order of its paths, without what is out of bounds, has no parent before
  /// it, or follows such a node.
  void arrange(std::vector<draft_token>& draft, const draft_bounds& bounds);

  std::span<const draft_path> paths() const noexcept { return paths_; }
  /// Where in the response's block list what no path needs begins, and how many from there on the
  /// branches take: perhaps more than it holds.
  std::uint32_t first_spare() const noexcept { return first_spare_; }
  std::uint32_t spares() const noexcept { return spares_; }

private:
  struct node {
    draft_token given;
    std::uint32_t depth = 0; ///< 0: left out.
    std::int32_t first_child = -1;
    bool begins = false;     ///< A path.
    std::int32_t place = -1; ///< In the result.
  };
  std::uint32_t judge(std::span<const draft_token> draft, const draft_bounds& bounds);
  std::uint32_t blocks_of(const node& head, const draft_bounds& bounds) const;

  std::vector<node> nodes_;
  std::vector<draft_path> paths_;
  std::uint32_t first_spare_ = 0;
  std::uint32_t spares_ = 0;
};

} // namespace rollcast
