#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace rollcast::sim {

/// Tokens that one response gains from a step in which a chain of so many tokens is verified.
struct chain_gain {
  double mean = 1;      ///< The token that a step makes anyway included.
  double deviation = 0; ///< Standard deviation of one step's tokens.
  double survival = 1;  ///< Chance that the chain is kept to its end.
};

/// How often drafted tokens are right, by how much of its group a drafter has to draw on.
///
/// Published (Seer, arXiv 2511.14617v3, Table 2, one path): with 0, 1, 5 and 15 complete siblings a
/// step makes 1.70, 2.04, 2.32 and 2.53 tokens. Between these lengths are linear in log(1 + n);
/// above 15 nothing is added. Each token of a draft is taken to be right with one chance b if all
/// before it are, so that a chain of g makes (1 - b^(g + 1)) / (1 - b) tokens; b is solved
/// for the table's length at g = 8, the published longest draft.
class acceptance_curve {
public:
  static constexpr std::uint32_t chain_max = 8;
  /// Steps of the curve from 0 to 15 siblings, equal in log(1 + n).
  static constexpr std::uint32_t levels = 64;

  acceptance_curve();

  /// The step of the curve at or below so many siblings; need not be whole.
  static std::uint32_t level(double siblings);
  /// @pre level <= levels, drafted <= chain_max
  const chain_gain& at(std::uint32_t level, std::uint32_t drafted) const {
    return gains_[level][drafted];
  }

private:
  std::array<std::array<chain_gain, chain_max + 1>, levels + 1> gains_{};
};

/// Tokens of a step beside so many complete siblings: the table and what lies between.
double published_acceptance_length(double siblings);

/// The chance b at which a chain of `drafted` makes `length` tokens. @pre 1 <= length <= drafted +
/// 1
double chance_of_length(double length, std::uint32_t drafted);

} // namespace rollcast::sim
