#include "engine/backend/cuda_kv.hpp"

#include "engine/backend/cuda_error.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace rollcast {

namespace gpu = kernels::cuda;
using kernels::kv_group;

result<cuda_kv> cuda_kv::make(const model_config& config, const device_shape& shape,
                              std::size_t stage_bytes) {
  cuda_kv out;
  auto& first = out.cache_.first;
  first = {nullptr, shape.block_tokens, config.kv_heads, config.head_dim, kernels::dtype::bf16};
  out.cache_.layers = config.layers;
  out.cache_.layer_bytes = shape.kv_blocks * first.block_bytes();
  const std::size_t bytes = out.cache_.layers * out.cache_.layer_bytes;
  auto memory = gpu::device_buffer::allocate(bytes);
  if (!memory)
    return fail(errc::bad_config, std::to_string(shape.kv_blocks) + " KV blocks take "
                                    + std::to_string(bytes >> 20) + " MiB: " + memory.error().what
                                    + "; take fewer --kv-blocks");
  const std::size_t stage = std::clamp(stage_bytes, first.block_bytes(), bytes);
  const std::size_t context_blocks =
    (std::size_t{shape.positions_max} + shape.block_tokens - 1) / shape.block_tokens;
  auto packed = gpu::device_buffer::allocate(stage);
  if (!packed)
    return device_failed(packed, "making the staging buffer of KV");
  auto pinned = gpu::pinned_buffer::allocate(stage);
  if (!pinned)
    return device_failed(pinned, "making the pinned buffer of KV");
  const std::size_t listed = std::max<std::size_t>(context_blocks, shape.kv_blocks);
  auto blocks = gpu::pinned_buffer::allocate(listed * sizeof(std::uint32_t));
  if (!blocks)
    return device_failed(blocks, "making the pinned buffer of KV");
  first.data = memory->data();
  out.memory_ = std::move(*memory);
  out.packed_ = std::move(*packed);
  out.pinned_ = std::move(*pinned);
  out.blocks_ = std::move(*blocks);
  return out;
}

kernels::kv_layout cuda_kv::layer(std::size_t index) const noexcept {
  kernels::kv_layout kv = cache_.first;
  kv.data += index * cache_.layer_bytes;
  return kv;
}

gpu::kv_cache cuda_kv::layers_of(const piece& p) const noexcept {
  return {layer(p.layer), p.layers, cache_.layer_bytes};
}

/// Calls `move` for pieces of an image [layer][group] that fit the staging buffers: whole layers
/// where one fits, else runs of whole blocks of one layer.
template <class Move>
gpu::device_status cuda_kv::each_piece(std::size_t groups, Move move) const {
  const std::size_t group_bytes = cache_.first.group_bytes();
  const std::size_t per_block = cache_.first.block_tokens / kv_group;
  const std::size_t fit = pinned_.size() / group_bytes;
  const std::size_t run = groups <= fit ? groups : fit / per_block * per_block;
  const std::size_t layers_max = std::max<std::size_t>(1, fit / std::max<std::size_t>(1, groups));
  for (std::size_t layer = 0; layer < cache_.layers;) {
    const std::size_t layers = std::min(run == groups ? layers_max : 1, cache_.layers - layer);
    for (std::size_t group = 0; group < groups; group += run) {
      const std::size_t count = std::min(run, groups - group);
      const piece p{layer,
                    layers,
                    group,
                    count,
                    (layer * groups + group) * group_bytes,
                    layers * count * group_bytes};
      if (auto ok = move(p); !ok)
        return ok;
    }
    layer += layers;
  }
  return {};
}

const std::uint32_t* cuda_kv::stage_blocks(std::span<const std::uint32_t> blocks) const {
  ROLLCAST_CHECK(blocks.size_bytes() <= blocks_.size());
  std::copy(blocks.begin(), blocks.end(), blocks_.as<std::uint32_t>());
  return blocks_.as<std::uint32_t>();
}

gpu::device_status cuda_kv::export_image(std::span<const std::uint32_t> blocks, std::size_t groups,
                                         std::span<std::byte> image,
                                         const gpu::stream& stream) const {
  const auto* const list = stage_blocks(blocks);
  const std::size_t per_block = cache_.first.block_tokens / kv_group;
  return each_piece(groups, [&](const piece& p) -> gpu::device_status {
    if (auto ok = gpu::pack_kv(layers_of(p), list + p.group / per_block, p.groups, packed_.data(),
                               stream.handle());
        !ok)
      return ok;
    if (auto ok = gpu::copy_async(pinned_.data(), packed_.data(), p.bytes, stream.handle()); !ok)
      return ok;
    if (auto ok = stream.synchronize(); !ok)
      return ok;
    std::memcpy(image.data() + p.at, pinned_.data(), p.bytes);
    return {};
  });
}

gpu::device_status cuda_kv::import_image(std::span<const std::uint32_t> blocks, std::size_t groups,
                                         std::span<const std::byte> image,
                                         const gpu::stream& stream) {
  const auto* const list = stage_blocks(blocks);
  const std::size_t per_block = cache_.first.block_tokens / kv_group;
  return each_piece(groups, [&](const piece& p) -> gpu::device_status {
    std::memcpy(pinned_.data(), image.data() + p.at, p.bytes);
    if (auto ok = gpu::copy_async(packed_.data(), pinned_.data(), p.bytes, stream.handle()); !ok)
      return ok;
    if (auto ok = gpu::unpack_kv(layers_of(p), list + p.group / per_block, p.groups, packed_.data(),
                                 stream.handle());
        !ok)
      return ok;
    return stream.synchronize(); // both buffers are free again
  });
}

gpu::device_status cuda_kv::fill(std::uint8_t byte, gpu::stream_handle stream) const {
  return gpu::fill_async(memory_.data(), byte, memory_.size(), stream);
}

} // namespace rollcast
