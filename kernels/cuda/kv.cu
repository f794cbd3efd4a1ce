#include "kernels/cuda/kv.hpp"
#include "kernels/cuda/launch.cuh"

#include <algorithm>
#include <cstdint>

namespace rollcast::kernels::cuda {
namespace {

constexpr unsigned copy_threads = 256;

// -- slots --------------------------------------------------------------------

struct slots_work {
  std::uint16_t* data;
  std::size_t block_tokens;
  std::size_t kv_heads;
  unsigned head_dim;
  const kv_slots* copies;
  const std::uint32_t* count;
};

/// One block a kv head, one thread an element of the head: it does all copies, in their order, of
/// that element alone, so that no copy needs to wait for another.
ROLLCAST_KERNEL(copy_threads, 1) copy_slots_kernel(slots_work work) {
  const std::size_t head = simt::block_x();
  const std::size_t tile = kv_group * work.head_dim, groups = work.block_tokens / kv_group;
  const unsigned count = *work.count;
  for (unsigned d = simt::thread_x(); d < work.head_dim; d += copy_threads)
    for (unsigned i = 0; i < count; ++i) {
      const kv_slots copy = work.copies[i];
      for (unsigned slot = copy.begin; slot < copy.end; ++slot) {
        const std::size_t group = slot / kv_group, at = slot % kv_group;
        const std::size_t from = ((copy.from * groups + group) * work.kv_heads + head) * 2 * tile;
        const std::size_t to = ((copy.to * groups + group) * work.kv_heads + head) * 2 * tile;
        work.data[to + d * kv_group + at] = work.data[from + d * kv_group + at];
        const std::size_t v = tile + at * work.head_dim + d;
        work.data[to + v] = work.data[from + v];
      }
    }
}

// -- images -------------------------------------------------------------------

struct image_work {
  unsigned char* data;
  std::size_t layer_bytes;
  std::size_t group_bytes;
  std::size_t groups_per_block;
  std::size_t groups;
  const std::uint32_t* blocks;
  unsigned char* image;
  bool pack;
};

/// Grid: groups, layers.
ROLLCAST_KERNEL(copy_threads, 1) copy_image_kernel(image_work work) {
  const std::size_t group = simt::block_x(), layer = simt::block_y();
  const std::size_t physical = work.blocks[group / work.groups_per_block] * work.groups_per_block
                               + group % work.groups_per_block;
  unsigned char* const cache = work.data + layer * work.layer_bytes + physical * work.group_bytes;
  unsigned char* const image = work.image + (layer * work.groups + group) * work.group_bytes;
  unsigned char* const to = work.pack ? image : cache;
  const unsigned char* const from = work.pack ? cache : image;
  for (std::size_t at = simt::thread_x() * 16; at < work.group_bytes; at += copy_threads * 16)
    simt::store_16(to + at, simt::load_16(from + at));
}

device_status copy_image(const kv_cache& cache, const std::uint32_t* blocks, std::size_t groups,
                         std::byte* image, bool pack, stream_handle stream) {
  if (groups == 0 || cache.layers == 0)
    return {};
  const std::size_t bytes = cache.first.group_bytes();
  if (bytes % 16 != 0 || cache.layer_bytes % 16 != 0
      || reinterpret_cast<std::uintptr_t>(image) % 16 != 0)
    return refused("a KV image: groups of " + std::to_string(bytes) + " bytes, layers of "
                   + std::to_string(cache.layer_bytes)
                   + ": both must be multiples of 16, and the image aligned to 16");
  const image_work work{reinterpret_cast<unsigned char*>(cache.first.data),
                        cache.layer_bytes,
                        bytes,
                        cache.first.block_tokens / kv_group,
                        groups,
                        blocks,
                        reinterpret_cast<unsigned char*>(image),
                        pack};
  const launch_shape shape{
    {static_cast<unsigned>(groups), static_cast<unsigned>(cache.layers), 1}, copy_threads, 0};
  return launch(pack ? "pack_kv" : "unpack_kv", copy_image_kernel, shape, work, stream);
}

} // namespace

device_status copy_kv(const kv_layout& kv, const kv_slots* copies, const std::uint32_t* count,
                      stream_handle stream) {
  if (!has_plain_tiles(kv))
    return refused("copy_kv: the cache must have bf16 keys and values of one width");
  const slots_work work{reinterpret_cast<std::uint16_t*>(kv.data), kv.block_tokens, kv.kv_heads,
                        static_cast<unsigned>(kv.head_dim),        copies,          count};
  const launch_shape shape{{static_cast<unsigned>(kv.kv_heads), 1, 1}, copy_threads, 0};
  return launch("copy_kv", copy_slots_kernel, shape, work, stream);
}

device_status pack_kv(const kv_cache& cache, const std::uint32_t* blocks, std::size_t groups,
                      std::byte* image, stream_handle stream) {
  return copy_image(cache, blocks, groups, image, true, stream);
}

device_status unpack_kv(const kv_cache& cache, const std::uint32_t* blocks, std::size_t groups,
                        const std::byte* image, stream_handle stream) {
  return copy_image(cache, blocks, groups, const_cast<std::byte*>(image), false, stream);
}

} // namespace rollcast::kernels::cuda
