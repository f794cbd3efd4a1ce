#pragma once

#include "cluster/journal/journal.hpp"

#include <cstdint>
#include <functional>
#include <memory>

namespace rollcast {

/// A journal as the scheduler and its link see it; tests make their own. The functions may be
/// called from any thread.
struct journal_access {
  std::shared_ptr<journal::sink> sink;
  std::function<std::uint64_t()> written;
  std::function<std::uint64_t()> durable; ///< The scheduler is told `durable` when it has risen.
  std::function<journal::journal_health()> health;
  std::shared_ptr<journal::image> found; ///< What it knew when it was opened; taken out once.
};

} // namespace rollcast
