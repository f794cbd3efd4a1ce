#pragma once

#include <chrono>
#include <cstdint>

namespace rollcast::cli {

/// Shows how far a batch is, on stderr: a bar that redraws itself on a terminal, otherwise a plain
/// line at every tenth of the batch.
class progress {
public:
  explicit progress(std::uint64_t responses);

  /// Draws if it is time to. `tokens` may lag behind.
  void show(std::uint64_t finished, std::uint64_t tokens, bool final = false);

private:
  using clock = std::chrono::steady_clock;

  std::uint64_t responses_;
  bool terminal_;
  clock::time_point begin_ = clock::now();
  clock::time_point drawn_{};
  std::uint64_t tenths_ = 0; ///< Plain lines written.
};

} // namespace rollcast::cli
