#pragma once

#include <array>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace rollcast::nccl {

// What nccl.h calls these: neither the header nor the library is needed to build. A test compares
// them with the header where there is one.
constexpr int success = 0;     // ncclSuccess
constexpr int in_progress = 7; // ncclInProgress
constexpr int uint8 = 1;       // ncclUint8
constexpr std::size_t id_bytes = 128;

struct unique_id { // ncclUniqueId
  std::array<char, id_bytes> bytes;
};

/// The first fields of ncclConfig_t, as version 2.14 had it. Later ones take what comes after from
/// their own defaults when they are told of that version.
struct config {
  std::size_t size = sizeof(config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;
};

/// The calls of the library that are used. One for the process; it stays loaded.
struct calls {
  int (*get_version)(int*) = nullptr;
  int (*get_unique_id)(unique_id*) = nullptr;
  int (*init_rank)(void**, int, unique_id, int, config*) = nullptr;
  int (*abort)(void*) = nullptr;
  int (*async_error)(void*, int*) = nullptr;
  const char* (*words)(int) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*send)(const void*, std::size_t, int, int, void*, void*) = nullptr;
  int (*receive)(void*, std::size_t, int, int, void*, void*) = nullptr;
  int (*broadcast)(const void*, void*, std::size_t, int, int, void*, void*) = nullptr;

  /// @returns null, and why, if it is not there, lacks a call or is too old.
  static std::unique_ptr<calls> find(const std::string& path, std::string& why_not);
};

} // namespace rollcast::nccl
