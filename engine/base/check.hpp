#pragma once

#include <cstdio>
#include <cstdlib>

/// Stops the process when the program itself is wrong. Stays on in release builds; never used for
/// input, peers or devices (those are `result`).
#define ROLLCAST_CHECK(condition)                                                                  \
  do {                                                                                             \
    if (!(condition)) [[unlikely]] {                                                               \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);           \
      std::abort();                                                                                \
    }                                                                                              \
  } while (false)
