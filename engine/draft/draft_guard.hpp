#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace rollcast {

/// Judges by the clock whether drafting pays: what steps with drafts brought, against steps
/// without, by the size of the batch. `choose_budget` says what should pay; where its costs are
/// wrong by a few percent, a gain that it sees is a loss. Here a loss ends drafting for a while,
/// which is the longer the more was lost, so that what is tried in vain stays a small share. What
/// a response writes may change meanwhile: a `rehearsal` that promises a gain ends it sooner.
class draft_guard {
public:
  /// Steps with drafts after which what they brought is judged, and again after half as many; and
  /// those that suffice where the loss is plain. Of a small batch a step says little.
  static constexpr std::uint32_t trial_steps = 128;
  static constexpr std::uint32_t trial_steps_min = 5;
  /// Steps that a failed trial shuts drafting out for, at least and at most.
  static constexpr std::uint32_t hold_min = 32;
  static constexpr std::uint32_t hold_max = 4096;

  /// True if the next step of so many rows, drafts not counted, may have drafts. Counts the step.
  bool admits(std::uint32_t rows);

  /// Steps of so many rows that have yet to come before one may have drafts.
  std::uint32_t hold_left(std::uint32_t rows) { return band_of(rows).hold_left; }

  /// Hears what drafts would have brought that are shut out: that many tokens, where the step
  /// without them makes `seats` in `plain_seconds`. Both times are the cost table's, but for what
  /// it took to look the drafts up.
  void rehearsed(std::uint32_t rows, double seconds, double plain_seconds, std::size_t tokens,
                 std::size_t seats);

  /// Hears that drafts were looked up for nothing in a step that might have had some: the next ones
  /// have to bring that time in as well.
  void vain(std::uint32_t rows, double seconds) { band_of(rows).vain_s += seconds; }

  /// Hears of a step without drafts. `plain_seconds` is what the cost table said of it.
  void plain(std::uint32_t rows, double seconds, double plain_seconds);
  /// Hears of a step with drafts that made `tokens` tokens; without drafts it would have made
  /// `seats`, in `plain_seconds` by the cost table.
  void drafted(std::uint32_t rows, double seconds, double plain_seconds, std::size_t tokens,
               std::size_t seats);

private:
  /// Batches between a power of two and the next are judged together.
  struct trial {
    double worth_s = 0; ///< What its tokens would have taken without drafts.
    double spent_s = 0;
    double squares = 0; ///< Sum of the squares of what each step gained or lost.
    double lost_s = 0;  ///< Since it was judged last.
    std::uint32_t steps = 0;

    void add(double worth, double spent);
    double gain() const { return worth_s / spent_s; }
    void halve();
    double spreads() const;
  };
  struct band {
    double slowness = 1; ///< Of steps without drafts: measured over table, a moving mean.
    double vain_s = 0;   ///< Since the last step with drafts.
    trial real;
    trial rehearsed;
    double promised = 0; ///< The gain that ended the last hold before its time; 0: none did.
    double doubt = 1;    ///< How much too high such a promise was.
    std::uint32_t hold = 0;
    std::uint32_t hold_left = 0;
  };
  static constexpr std::size_t bands = 16;

  band& band_of(std::uint32_t rows);
  static void judge(band& b, double plain_s);

  std::array<band, bands> bands_{};
};

} // namespace rollcast
