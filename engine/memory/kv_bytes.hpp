#pragma once

#include "engine/memory/block_recycler.hpp"

#include <cstddef>
#include <vector>

namespace rollcast {

/// The bytes of a KV image. `resize` leaves new ones as they are: whoever asks for room fills it.
using kv_bytes = std::vector<std::byte, recycling_allocator<std::byte>>;

} // namespace rollcast
