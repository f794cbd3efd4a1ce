#pragma once

#include "engine/collective/communicator.hpp"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

namespace rollcast {

/// How bytes of the host get through NCCL, which moves those of a device: piece by piece through
/// memory of the device and pinned memory, both of `transfers_max * piece_bytes`.
struct nccl_limits {
  std::size_t transfers_max = 16; ///< Of one operation; more are refused.
  std::size_t piece_bytes = std::size_t{4} << 20;
  std::string library = {}; ///< Path; "": libnccl.so.2, where the loader looks.
};

/// Sets NCCL_COMM_BLOCKING=0 in the environment, unless it is set: NCCL overwrites nothing there
/// with what its file (/etc/nccl.conf) says, which it reads as late as in a rank's first group.
/// @pre the process has one thread.
inline void keep_nccl_from_blocking() {
  ::setenv("NCCL_COMM_BLOCKING", "0", 0);
}

/// Makes communicators of NCCL for a GPU. The library is found when the program runs, so that
/// nothing needs it to be built or started: at least 2.18, whose abort is safe while a group forms.
/// Fails with `bad_config` and one line if it is not there, there is no GPU of that number, or
/// NCCL_COMM_BLOCKING is 1 in the environment or not there (`keep_nccl_from_blocking`).
///
/// Its communicators are made non-blocking: by its documentation no call of NCCL then waits for
/// another rank, and what it says of an error elsewhere is asked for at every `poll`: a member
/// polls while its group forms or a round runs, so an error in between is heard of with the next
/// round. `abort` waits for NCCL's own, which has no limit of ours, and then until the device is
/// done with the memory, for a second at most; memory that it is not done with then is given up for
/// good.
result<std::unique_ptr<communicator_maker>> open_nccl(std::uint32_t device,
                                                      nccl_limits limits = {});

} // namespace rollcast
