#pragma once

#include "engine/collective/communicator.hpp"

#include <cstdint>
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

/// Makes communicators of NCCL for a GPU. The library is found when the program runs, so that
/// nothing needs it to be built or started: at least 2.18, whose abort is safe while a group forms.
/// Fails with `bad_config` and one line if it is not there, there is no GPU of that number, or
/// NCCL_COMM_BLOCKING=1 is in the environment.
///
/// Its communicators never block: no call of NCCL waits for another rank, and what it says of an
/// error elsewhere is asked for at every `poll`. `abort` waits until the device is done with the
/// memory, for a second at most; memory that it is not done with then is given up for good.
result<std::unique_ptr<communicator_maker>> open_nccl(std::uint32_t device,
                                                      nccl_limits limits = {});

} // namespace rollcast
