#pragma once

#include "engine/base/error.hpp"

#include <new>
#include <stdexcept>
#include <string>

namespace rollcast {

/// Calls `make`, which returns a `result`. When there is no memory for it, only that fails, with
/// `queue_full`: `what` and what to do. For large things that can be done without; where nothing
/// can go on, the process ends with a line (cli/last_words.hpp).
template <class Make>
auto unless_memory_lacks(const std::string& what, Make&& make) -> decltype(make()) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    return fail(errc::queue_full, "no memory for " + what + ": give the process more");
  } catch (const std::length_error&) {
    return fail(errc::queue_full, "no memory for " + what + ": give the process more");
  }
}

} // namespace rollcast
