#pragma once

#include "engine/collective/communicator.hpp"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

namespace rollcast::test {

/// A pretended network of devices in one process, for tests only: communicators over it copy from
/// memory to memory when both sides have begun, and say so when they are polled. What can go wrong
/// with a real one is asked for: a rank that dies inside an operation, one whose death nobody is
/// told of, operations that never end, groups that do not form. What a real one would hang on, two
/// sides of different sizes or with different roots, fails the group. Any thread.
class pretend_fabric {
public:
  pretend_fabric();
  ~pretend_fabric();
  pretend_fabric(const pretend_fabric&) = delete;
  pretend_fabric& operator=(const pretend_fabric&) = delete;

  /// Makes communicators of a device of that name. Must not outlive the fabric.
  std::unique_ptr<communicator_maker> device(const std::string& name);

  /// From here on the device does nothing any more, wherever it is, and its memory is not touched.
  /// @param tell  whether its groups fail at their other ranks; else those wait for it.
  void kill(const std::string& device, bool tell);
  /// Nothing ends that runs, or begins, until it is `false` again.
  void stall(bool on);
  /// The next so many groups fail to form.
  void refuse_groups(std::uint32_t count);
  /// Every byte that is copied arrives wrong.
  void corrupt(bool on);

  /// Whether an operation that runs may read or write the byte at `at`.
  bool uses(const std::byte* at) const;
  /// Operations that have ended well, over all ranks.
  std::uint64_t operations() const;

private:
  struct state;
  class maker;
  class rank;
  const std::shared_ptr<state> state_;
};

} // namespace rollcast::test
