#pragma once

#include "engine/backend/backend.hpp"
#include "engine/base/error.hpp"
#include "engine/model/config.hpp"
#include "kernels/cuda/kv.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/kv_layout.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace rollcast {

/// The KV blocks of a device, and the way that images of them take to the host: packed by a kernel
/// into a staging buffer of the device, copied from there to pinned memory, and from that to where
/// the caller wants them; the other way round for an import.
class cuda_kv {
public:
  /// Allocates on the current device. @param stage_bytes  Of each of the two staging buffers, at
  /// least one block of one layer.
  static result<cuda_kv> make(const model_config& config, const device_shape& shape,
                              std::size_t stage_bytes);

  /// The cache of one layer.
  kernels::kv_layout layer(std::size_t index) const noexcept;

  /// As `backend::export_kv` and `backend::import_kv`. They wait for the stream.
  kernels::cuda::device_status export_image(std::span<const std::uint32_t> blocks,
                                            std::size_t groups, std::span<std::byte> image,
                                            const kernels::cuda::stream& stream) const;
  kernels::cuda::device_status import_image(std::span<const std::uint32_t> blocks,
                                            std::size_t groups, std::span<const std::byte> image,
                                            const kernels::cuda::stream& stream);

  /// Sets every byte of every slot: 0, or 0xff, which is NaN.
  kernels::cuda::device_status fill(std::uint8_t byte, kernels::cuda::stream_handle stream) const;

private:
  /// A part of an image that the staging buffers hold: some groups of some layers.
  struct piece {
    std::size_t layer;
    std::size_t layers;
    std::size_t group;
    std::size_t groups;
    std::size_t at; ///< In the image.
    std::size_t bytes;
  };
  template <class Move>
  kernels::cuda::device_status each_piece(std::size_t groups, Move move) const;
  kernels::cuda::kv_cache layers_of(const piece& p) const noexcept;
  const std::uint32_t* stage_blocks(std::span<const std::uint32_t> blocks) const;

  kernels::cuda::device_buffer memory_;
  kernels::cuda::device_buffer packed_;
  kernels::cuda::pinned_buffer pinned_;
  kernels::cuda::pinned_buffer blocks_; ///< A block list, which the kernels read where it is.
  kernels::cuda::kv_cache cache_;
};

} // namespace rollcast
