#pragma once

#include "engine/base/ids.hpp"
#include "engine/draft/drafter.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace rollcast {

/// How much `suffix_index::speculate` may return.
struct draft_shape {
  std::uint32_t tokens_max = 8;
  std::uint32_t branches_max = 1; ///< Children kept at a fork; 1 is a chain.
  float survival_min = 0.1f;      ///< Product of probabilities from the root, below it no node.
};

/// What the streams of a group (responses to one prompt) have written, for finding what may come
/// next: the continuations of earlier occurrences of a stream's longest matching suffix, weighed by
/// counts. Shared by all members of the group; not thread-safe.
///
/// Every position is chained to the latest one before it whose last 2, 4, 8 and 16 tokens hash
/// alike. A look-up walks the chain of the longest such n-gram that occurs, compares tokens, and
/// lets the longest matches vote on each token that follows. Cost: O(1) for an appended token,
/// O(candidates * match) for a look-up, both bounded by constants.
class suffix_index {
public:
  /// Opens a stream. @returns its number: 0, 1, ...
  std::uint32_t open();
  /// Appends to a stream.
  void append(std::uint32_t stream, std::span<const token_id> tokens);
  std::size_t size(std::uint32_t stream) const { return streams_[stream].size; }

  /// Drafts what may follow the end of `stream`, from every stream, its own past included. Clears
  /// `out`. @returns the length of the longest matching suffix, 0 if nothing matches.
  std::uint32_t speculate(std::uint32_t stream, const draft_shape& shape,
                          std::vector<draft_token>& out) const;

  std::size_t tokens() const noexcept { return tokens_; } ///< In all streams.
  std::size_t bytes() const noexcept;                     ///< Heap held, everything counted.

private:
  static constexpr std::size_t levels = 4;
  static constexpr std::array<std::uint32_t, levels> grams{2, 4, 8, 16};
  static constexpr std::uint32_t block_tokens = 64;
  static constexpr std::uint32_t match_max = 64;
  static constexpr std::uint32_t none = 0xffff'ffff;
  using hashes = std::array<std::uint32_t, levels>;

  /// A run of a stream's tokens. A position is its block's index times `block_tokens`, plus its
  /// place there.
  struct block {
    std::uint32_t before = none; ///< Blocks of the same stream.
    std::uint32_t behind = none;
    std::uint32_t used = 0;
    std::array<token_id, block_tokens> tokens;
    /// By level: the latest earlier position in the same bucket.
    std::array<std::array<std::uint32_t, block_tokens>, levels> earlier;
  };
  struct stream_state {
    std::uint32_t last = none; ///< Its last block.
    std::uint32_t size = 0;
    hashes hash{}; ///< Of its last 2, 4, 8 and 16 tokens.
  };
  /// An earlier occurrence of the context's end: the position that its continuation has got to.
  struct cursor {
    std::uint32_t position = 0;
    float weight = 0;
  };
  /// A node that may be drafted next, with the cursors that agree on it.
  struct leaf {
    float survival = 0;
    draft_token node;
    std::uint32_t begin = 0;
    std::uint32_t end = 0;
  };

  void add(std::uint32_t stream, token_id token);
  void grow();
  std::uint32_t bucket(std::uint32_t hash) const;
  token_id at(std::uint32_t position) const {
    return blocks_[position / block_tokens]->tokens[position % block_tokens];
  }
  std::uint32_t next(std::uint32_t position) const;
  std::uint32_t match(std::uint32_t position, std::span<const token_id> context) const;
  std::uint32_t find(const stream_state& s) const;
  void fork(std::uint32_t begin, std::uint32_t end, float survival, std::int32_t parent,
            const draft_shape& shape) const;

  std::vector<std::unique_ptr<block>> blocks_;
  std::vector<stream_state> streams_;
  std::array<std::vector<std::uint32_t>, levels> heads_; ///< By bucket: the latest position.
  std::size_t tokens_ = 0;
  // Of the look-up under way; kept so that nothing is allocated once they are warm.
  mutable std::vector<cursor> cursors_;
  mutable std::vector<leaf> leaves_;
};

} // namespace rollcast
