#pragma once

#include "engine/backend/activation_observer.hpp"
#include "engine/base/error.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace rollcast {

/// The first place where two dumps differ, in the order of computation.
struct dump_difference {
  std::size_t sequence = 0;
  std::string name; ///< Of the sequence, in the first dump.
  operation what{};
  std::uint32_t layer = 0;
  std::uint32_t row = 0;       ///< Position in the sequence.
  std::uint32_t differing = 0; ///< Rows of this operation, layer and sequence that differ.
  std::uint32_t rows = 0;      ///< Rows that it has.
  /// The first element of the row whose bits differ; none unless both dumps have its values.
  struct element {
    std::uint32_t column = 0;
    std::uint32_t columns = 0;
    float a = 0;
    float b = 0;
  };
  std::optional<element> at;
};

struct dump_comparison {
  std::vector<std::string> notes; ///< What else is not the same: weights, profile, temperature, ...
  std::uint64_t sequences = 0;
  std::uint64_t rows = 0; ///< Compared; all, if nothing differs.
  std::optional<dump_difference> first;
};

/// Compares the hashes of two dumps, and the values of the first row that differs. Operations that
/// only one of them has are passed over, with a note.
/// @returns as `read_dump_header`; `bad_config` if the dumps are not of the same sequences, layers
///          and widths, or if a row's values are not those that were hashed.
result<dump_comparison> compare_dumps(const std::filesystem::path& a,
                                      const std::filesystem::path& b);

/// One line, without the newline.
std::string to_text(const dump_difference& difference);

} // namespace rollcast
