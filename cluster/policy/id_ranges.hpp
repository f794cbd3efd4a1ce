#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>

namespace rollcast::policy {

/// A set of numbers kept as ranges: what is over and must stay over. Ids are handed out in order,
/// so millions of ended groups and workers are a few ranges. O(log ranges) each.
class id_ranges {
public:
  bool contains(std::uint64_t id) const {
    const auto after = first_to_last_.upper_bound(id);
    return after != first_to_last_.begin() && std::prev(after)->second >= id;
  }

  void insert(std::uint64_t id) {
    if (contains(id))
      return;
    auto last = id;
    const auto after = first_to_last_.upper_bound(id);
    if (after != first_to_last_.end() && after->first == id + 1) {
      last = after->second;
      first_to_last_.erase(after);
    }
    const auto next = first_to_last_.upper_bound(id);
    if (next != first_to_last_.begin() && std::prev(next)->second + 1 == id)
      std::prev(next)->second = last;
    else
      first_to_last_.emplace(id, last);
  }

  std::size_t ranges() const noexcept { return first_to_last_.size(); }

private:
  std::map<std::uint64_t, std::uint64_t> first_to_last_;
};

} // namespace rollcast::policy
