#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace rollcast {

/// Judges by the clock whether drafting pays: what steps with drafts brought, against steps
/// without, by the size of the batch. `choose_budget` says what should pay; where its costs are
/// wrong by a few percent, a gain that it sees is a loss. Here a loss ends drafting for a while,
/// which is the longer the more was lost, so that what is tried in vain stays a small share.
class draft_guard {
public:
  /// Steps with drafts that make one trial, and those that suffice where the loss is plain.
  static constexpr std::uint32_t trial_steps = 16;
  static constexpr std::uint32_t trial_steps_min = 4;
  /// Steps that a failed trial shuts drafting out for, at least and at most.
  static constexpr std::uint32_t hold_min = 32;
  static constexpr std::uint32_t hold_max = 4096;

  /// True if the next step of so many rows, drafts not counted, may have drafts. Counts the step.
  bool admits(std::uint32_t rows);

  /// Steps of so many rows that have yet to come before one may have drafts.
  std::uint32_t hold_left(std::uint32_t rows) { return band_of(rows).hold_left; }

  /// Hears of a step without drafts. `plain_seconds` is what the cost table said of it.
  void plain(std::uint32_t rows, double seconds, double plain_seconds);
  /// Hears of a step with drafts that made `tokens` tokens; without drafts it would have made
  /// `seats`, in `plain_seconds` by the cost table.
  void drafted(std::uint32_t rows, double seconds, double plain_seconds, std::size_t tokens,
               std::size_t seats);

private:
  /// Batches between a power of two and the next are judged together.
  struct band {
    double slowness = 1; ///< Of steps without drafts: measured over table, a moving mean.
    double worth_s = 0;  ///< Of the trial: what its tokens would have taken without drafts.
    double spent_s = 0;
    std::uint32_t steps = 0;
    std::uint32_t hold = 0;
    std::uint32_t hold_left = 0;
  };
  static constexpr std::size_t bands = 16;

  band& band_of(std::uint32_t rows);

  std::array<band, bands> bands_{};
};

} // namespace rollcast
