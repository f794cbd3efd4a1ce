#pragma once

#include "cluster/journal/records.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rollcast::test {

/// A journal in memory: keeps records with the time of the system's clock that it is told, and says
/// what any number of them come to.
class record_log final : public journal::sink {
public:
  void write(journal::record what) override { all.push_back({std::move(what), unix_ns}); }

  /// What the first `count` records come to, for a scheduler process of that generation.
  journal::image image_of(std::size_t count, std::uint64_t generation = 2) const;
  journal::image image() const { return image_of(all.size()); }

  struct entry {
    journal::record what;
    std::uint64_t unix_ns = 0;
  };
  std::vector<entry> all;
  std::uint64_t unix_ns = 1; ///< Of the next record.
};

} // namespace rollcast::test
