#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace rollcast {

/// Bytes of host memory that go to another rank, or come from it: one of the spans is empty.
struct rank_transfer {
  std::uint32_t peer = 0;
  std::span<const std::byte> out = {};
  std::span<std::byte> in = {};
};

/// The devices that move bytes together: ranks 0 to n-1 of one group that was formed at one time.
///
/// Every call returns at once. One operation runs at a time; all ranks that it names must begin
/// operations in one order. Memory given to an operation must stay until `poll` has said that it is
/// over or `abort` has returned. After a failure nothing but `abort` helps. One thread uses it.
class communicator {
public:
  virtual ~communicator() = default; ///< As `abort`.

  /// Begins transfers with other ranks, all together, which they must begin too: between two ranks
  /// they are matched in the order given, and sizes must agree. @pre nothing runs.
  virtual result<void> exchange(std::vector<rank_transfer> transfers) = 0;

  /// Begins to copy `bytes` of rank `root` over those of all others. @pre nothing runs.
  virtual result<void> broadcast(std::uint32_t root, std::span<std::byte> bytes) = 0;

  /// @returns true if nothing runs any more; false while forming the group, or the operation,
  ///          lasts; `peer_lost` (one line) if it has failed.
  virtual result<bool> poll() = 0;

  /// Ends whatever runs, here; what the other ranks notice of it is not said. No memory that was
  /// given is touched afterwards.
  virtual void abort() = 0;
};

/// Makes communicators of one device. One thread uses it.
class communicator_maker {
public:
  virtual ~communicator_maker() = default;

  /// Names the device among all that there are, on any machine: two ranks of one group may not
  /// share one.
  virtual const std::string& device() const noexcept = 0;

  /// What one rank makes and all ranks of a group must be given: some bytes. Fails with
  /// `peer_lost`.
  virtual result<std::string> new_id() = 0;

  /// Begins to form a group with all who were given `id`; `communicator::poll` tells when it is.
  /// @param rank  of this device, below `size`.
  virtual result<std::unique_ptr<communicator>> form(const std::string& id, std::uint32_t rank,
                                                     std::uint32_t size) = 0;
};

} // namespace rollcast
