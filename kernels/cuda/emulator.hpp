#pragma once

#include "kernels/cuda/launch_shape.hpp"
#include "kernels/cuda/runtime.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>

/// The emulator's own side, for its runtime and for tests. Only in `rollcast_cuda_emulated`.
namespace rollcast::kernels::cuda {

/// The order in which the calling host thread runs the blocks of a grid and the warps of a block: 0
/// ascending, 1 descending, anything else shuffled by this seed. No result may depend on it: one
/// that does has a barrier missing or depends on which block comes last.
void set_emulated_order(std::uint64_t seed) noexcept;

/// Times that the calling host thread has waited for a stream or an event.
std::uint64_t emulated_waits() noexcept;

namespace simt::host {

/// Shared memory of one block, as on sm_90.
inline constexpr std::size_t shared_bytes_max = 227 * 1024;

/// Runs `body` for every thread of every block, block after block. Shared memory holds NaN when a
/// block starts.
/// @returns the first broken rule: threads that do not come to a barrier, lanes at different warp
///          operations, a misaligned or outlying address of shared memory, a shape no GPU takes.
device_status run_grid(const char* kernel, const launch_shape& shape,
                       const std::function<void()>& body);

/// Does `work` now, or keeps it if the stream is being captured.
device_status submit(stream_handle stream, std::function<device_status()> work);

} // namespace simt::host
} // namespace rollcast::kernels::cuda
