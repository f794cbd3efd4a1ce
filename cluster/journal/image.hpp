#pragma once

#include "cluster/journal/records.hpp"

#include <cstdint>

namespace rollcast::journal {

/// What a journal of `before` knows after one more record, written at `unix_ns`. The definition of
/// what records mean, in memory: a journal's tables must come to the same (test: `journal_image`).
/// Records of a batch that is not known are ignored. `generation` is left alone.
/// @pre a response's edges follow on each other, and it finishes once
void apply(image& before, const record& what, std::uint64_t unix_ns);

} // namespace rollcast::journal
