#pragma once

#include "cluster/journal/image.hpp"
#include "cluster/journal/journal.hpp"
#include "engine/base/prng.hpp"

#include <cstdint>
#include <string>

namespace rollcast::journal {

/// Records as a scheduler could write them, drawn by a seed; what they come to is folded in memory.
class history {
public:
  explicit history(std::uint64_t seed) : rng_(seed) {}
  /// Draws the next one and applies it.
  record next();
  const image& known() const noexcept { return known_; }
  std::uint64_t written() const noexcept { return written_; }

private:
  record draw();
  record submit();
  record edge(batch_image& batch, std::uint64_t ordinal);
  record news_of(batch_image& batch);
  record end(const batch_image& batch);
  record cluster_news();
  float real();

  prng rng_;
  image known_;
  std::uint64_t written_ = 0;
};

/// Everything in an image but times and the generation, floats by their bits.
std::string text_of(const image& all);

/// Waits, a minute at most, until all that was written is on disk.
bool settled(const journal& keeper);

/// A batch of one group, ready to be submitted.
std::shared_ptr<wire::submit_batch> small_spec(const std::string& key, std::uint32_t responses);

/// An edge of `tokens` tokens with a kept mass each.
chunk_edge edge_of(batch_id id, std::uint64_t ordinal, std::uint32_t position, std::size_t tokens);

} // namespace rollcast::journal
