#pragma once

#include "engine/base/ids.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace rollcast {

/// What a pair of neighbouring tokens becomes, and how early. `merged` < 0: the pair never merges.
struct merge {
  std::uint32_t rank = 0;
  token_id merged = -1;
};

/// Merges by pair of tokens: one flat array, open addressing, linear probing.
class merge_table {
public:
  /// Makes room for `merges` pairs.
  explicit merge_table(std::size_t merges = 0);

  /// Adds a pair; a pair given twice keeps the later rank. At most as many as there is room for.
  void insert(token_id left, token_id right, merge value);

  [[nodiscard]] merge find(token_id left, token_id right) const noexcept;

private:
  struct entry {
    token_id left = -1; // -1: free
    token_id right = -1;
    merge value;
  };

  [[nodiscard]] std::size_t slot_of(token_id left, token_id right) const noexcept;

  std::vector<entry> entries_; // a power of two, at most half full
};

/// Working memory of `merge_bytes`, kept between pieces so that none allocates.
struct merge_scratch {
  struct symbol {
    token_id id; // -1: merged into its left neighbour
    std::size_t previous;
    std::size_t next;
  };
  struct candidate {
    merge value;
    std::size_t position;
  };
  std::vector<symbol> symbols;
  std::vector<candidate> heap;
};

/// Appends the tokens of one piece to `out`: starting from its bytes, always merges the pair of
/// lowest rank, the leftmost of equals.
///
/// @param byte_tokens  The token of each byte.
/// Cost:    O(n log n) for a piece of n bytes.
/// Source:  Sennrich, Haddow and Birch, arXiv:1508.07909; order of merges as in the reference.
void merge_bytes(std::string_view piece, const std::array<token_id, 256>& byte_tokens,
                 const merge_table& merges, merge_scratch& scratch, std::vector<token_id>& out);

} // namespace rollcast
