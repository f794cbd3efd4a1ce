#pragma once

#include "cluster/weights/weight_cargo.hpp"
#include "engine/memory/heap.hpp"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace rollcast {

/// Bounds of what one update may send.
struct weight_stage_limits {
  std::uint64_t bytes_max = weight_bytes_max; ///< Of all tensors, by their shapes.
  std::size_t tensors_max = weight_tensors_max;
  std::size_t name_bytes_max = 512;
  std::size_t rank_max = 8;
  std::size_t pieces_max = 4'096; ///< Pieces that one tensor may be in before they join.
};

/// Where a part of a tensor belongs, as a controller says it.
struct tensor_slice {
  std::string_view name;
  kernels::dtype type = kernels::dtype::f32;
  std::span<const std::size_t> shape;
  std::uint64_t offset = 0; ///< In bytes, in the tensor.
};

/// Collects the tensors of an update from a controller, in slices of any size and order, and
/// becomes a complete `weight_cargo`. A tensor is hashed by a thread of the stage once it is full.
///
/// What is refused changes nothing, so a controller may send the right slice afterwards. Any thread
/// may call, several at once too.
class weight_stage {
public:
  explicit weight_stage(std::uint64_t update, weight_stage_limits limits = {},
                        tensor_memory memory = tensor_memory{});
  ~weight_stage();
  weight_stage(const weight_stage&) = delete;
  weight_stage& operator=(const weight_stage&) = delete;

  /// Copies one slice in. @returns `frame_malformed` for a name that is empty, has a control
  /// character or is too long, a shape without elements or past 2^64 bytes, or no bytes or bytes
  /// past the tensor's end; `bad_checkpoint` for another shape or dtype than before;
  /// `batch_conflict` for bytes that came before; `frame_too_large` past a limit; `bad_config`
  /// without memory; `cancelled` after `finish`.
  result<void> add_slice(const tensor_slice& where, std::span<const std::byte> bytes);

  /// Waits for the last hashes and hands the tensors over; nothing can be added afterwards.
  /// @returns `bad_checkpoint` if a tensor is incomplete (detail: the first such tensor, the first
  /// range that is missing, how many tensors are), after which slices may still be added, or if
  /// there is none; `cancelled` the second time or after `give_up`.
  result<std::shared_ptr<weight_cargo>> finish(std::uint32_t slice_bytes = weight_slice_bytes);

  /// Nobody wants it any more: `finish` ends at once with `cancelled`, nothing is taken or hashed.
  void give_up();

  std::uint64_t update() const noexcept { return update_; }
  /// Bytes that came so far.
  std::uint64_t bytes_here() const;

private:
  struct part {
    tensor_info info;
    std::uint64_t bytes = 0;
    std::shared_ptr<std::byte> memory;
    std::map<std::uint64_t, std::uint64_t> claimed; ///< Begin to end; adjacent ones are one.
    std::uint64_t copied = 0;                       ///< Bytes of `claimed` that are in memory.
    bool hashed = false;
  };

  result<part*> part_of(const tensor_slice& where, std::uint64_t bytes);
  static result<void> check_bounds(const part& p, std::uint64_t begin, std::uint64_t bytes);
  static std::string said(const part& p, std::uint64_t begin, std::uint64_t bytes);
  result<void> claim(part& p, std::uint64_t begin, std::uint64_t bytes);
  void hash_full_ones();

  const std::uint64_t update_;
  const weight_stage_limits limits_;
  tensor_memory memory_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, part, std::less<>> parts_; ///< Guarded by `mutex_`, as all below.
  std::deque<part*> full_;                         ///< To be hashed.
  std::uint64_t bytes_declared_ = 0;
  std::uint64_t bytes_here_ = 0;
  std::optional<kept_heap> kept_{std::in_place}; ///< Until it is finished: slices are messages.
  bool finished_ = false;
  bool stopping_ = false;
  std::thread hasher_;
};

} // namespace rollcast
