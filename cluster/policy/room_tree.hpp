#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace rollcast::policy {

/// A tournament: answers in O(1) which worker has the most room, and takes a change in O(log n).
/// An array and not an ordered set, because it changes twice with every decision.
class room_tree {
public:
  struct entry {
    std::uint64_t room = 0; ///< 0: takes nothing.
    std::uint64_t id = 0;   ///< Breaks ties: the lowest wins.
    std::uint32_t slot = 0;
    friend bool operator==(const entry&, const entry&) = default;
  };

  /// Sets the room of `slot`. Cost: O(log slots), and a rebuild when the slots outgrow the tree.
  void set(std::uint32_t slot, std::uint64_t id, std::uint64_t room) {
    if (slot >= leaves_)
      grow(slot + 1);
    auto node = leaves_ + slot;
    tree_[node] = {room, id, slot};
    for (node /= 2; node > 0; node /= 2) {
      const auto& won = winner(tree_[2 * node], tree_[2 * node + 1]);
      if (tree_[node] == won)
        return; // so nothing changes above either
      tree_[node] = won;
    }
  }

  /// Returns the roomiest; its room is 0 if nobody takes anything.
  entry best() const { return tree_.empty() ? entry{} : tree_[1]; }

  /// Returns the roomiest but `slot`. Cost: O(log slots)
  entry best_except(std::uint32_t slot) const {
    entry best;
    for (auto node = leaves_ + slot; node > 1 && slot < leaves_; node /= 2)
      best = winner(best, tree_[node ^ 1]);
    return best;
  }

private:
  static const entry& winner(const entry& a, const entry& b) {
    if (a.room != b.room)
      return a.room > b.room ? a : b;
    return a.id <= b.id ? a : b;
  }

  void grow(std::size_t slots) {
    std::size_t leaves = 16;
    while (leaves < slots)
      leaves *= 2;
    std::vector<entry> tree(2 * leaves);
    std::copy(tree_.begin() + static_cast<std::ptrdiff_t>(leaves_), tree_.end(),
              tree.begin() + static_cast<std::ptrdiff_t>(leaves));
    for (auto node = leaves - 1; node > 0; --node)
      tree[node] = winner(tree[2 * node], tree[2 * node + 1]);
    tree_.swap(tree);
    leaves_ = leaves;
  }

  std::size_t leaves_ = 0;
  std::vector<entry> tree_; // node 1 is the root, the leaves follow from leaves_
};

} // namespace rollcast::policy
