#include "engine/step/draft_tree.hpp"

#include <algorithm>
#include <cstddef>

namespace rollcast {

/// Finds depths and first children. @returns the largest depth.
std::uint32_t draft_tree::judge(std::span<const draft_token> draft, const draft_bounds& bounds) {
  nodes_.clear();
  std::int32_t first_root = -1;
  std::uint32_t kept = 0;
  std::uint32_t deepest = 0;
  for (std::size_t i = 0; i < draft.size(); ++i) {
    const draft_token& given = draft[i];
    nodes_.push_back({given});
    const bool known =
      given.token >= 0 && static_cast<std::uint32_t>(given.token) < bounds.vocabulary;
    if (!known || kept == bounds.nodes_max || given.parent < -1
        || given.parent >= static_cast<std::int32_t>(i))
      continue;
    node* parent = given.parent < 0 ? nullptr : &nodes_[static_cast<std::size_t>(given.parent)];
    const auto depth = (parent != nullptr ? parent->depth : 0) + 1;
    if ((parent != nullptr && parent->depth == 0) || depth > bounds.depth_max)
      continue;
    std::int32_t& first = parent != nullptr ? parent->first_child : first_root;
    nodes_.back().depth = depth;
    nodes_.back().begins = parent == nullptr || first >= 0;
    if (first < 0)
      first = static_cast<std::int32_t>(i);
    deepest = std::max(deepest, depth);
    ++kept;
  }
  return deepest;
}

/// Blocks that the path of `head` touches.
std::uint32_t draft_tree::blocks_of(const node& head, const draft_bounds& bounds) const {
  auto last = head.depth;
  for (auto at = head.first_child; at >= 0; at = nodes_[static_cast<std::size_t>(at)].first_child)
    ++last;
  const auto block_at = [&](std::uint32_t depth) {
    return (bounds.position + depth - 1) / bounds.block_tokens;
  };
  return block_at(last) - block_at(head.depth) + 1;
}

void draft_tree::arrange(std::vector<draft_token>& draft, const draft_bounds& bounds) {
  const auto deepest = judge(draft, bounds);
  draft.clear();
  paths_.clear();
  spares_ = 0;
  first_spare_ = (bounds.position + deepest + bounds.block_tokens - 1) / bounds.block_tokens;
  const auto most = bounds.blocks_held + bounds.blocks_free - first_spare_;
  // A path that begins at a later node forks off a node before it, which is in place by then.
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const node& head = nodes_[i];
    if (head.depth == 0 || !head.begins)
      continue;
    const auto over = head.given.parent;
    const auto parent = over < 0 ? -1 : nodes_[static_cast<std::size_t>(over)].place;
    const auto blocks = paths_.empty() ? 0 : blocks_of(head, bounds);
    if ((over >= 0 && parent < 0) || blocks > most - spares_)
      continue;
    spares_ += blocks;
    paths_.push_back({static_cast<std::uint32_t>(draft.size()), head.depth, parent});
    auto above = parent;
    for (auto at = static_cast<std::int32_t>(i); at >= 0;) {
      node& n = nodes_[static_cast<std::size_t>(at)];
      n.place = static_cast<std::int32_t>(draft.size());
      draft.push_back({n.given.token, above, n.given.probability});
      above = n.place;
      at = n.first_child;
    }
  }
}

} // namespace rollcast
