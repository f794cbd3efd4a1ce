#pragma once

#include "cluster/weights/tensor_memory.hpp"
#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/model/tensor_info.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace rollcast {

/// Bytes, and what keeps them in memory.
struct kept_bytes {
  std::shared_ptr<const void> owner;
  std::span<const std::byte> bytes;
};

/// Size that no manifest and no update may pass unless it is told otherwise.
inline constexpr std::uint64_t weight_bytes_max = std::uint64_t{1} << 40;
inline constexpr std::uint32_t weight_slice_bytes = 1u << 20;
inline constexpr std::size_t weight_tensors_max = 1u << 16;
/// Each slice is some bytes of memory before any has come: 16 times what the largest update has.
inline constexpr std::uint64_t weight_slices_max = std::uint64_t{1} << 24;

/// The tensors of one update in memory, cut into numbered slices: slice after slice through the
/// first tensor, then through the second. A tensor's last slice may be short; no slice spans two.
///
/// Either complete from the start (`of`, `open_cargo`) or filled slice by slice (`expecting`). A
/// filled tensor is readable once all of it came and its hash was that of the manifest. Any
/// thread may ask; one thread at a time may `put`.
class weight_cargo {
public:
  enum class outcome : std::uint8_t {
    taken,     ///< It is here now.
    repeated,  ///< It was here before; nothing changed.
    forgotten, ///< Its tensor was full, but with another hash: `slices_of` all lack again.
  };
  /// Tells which tensors of a manifest are to be received.
  using filter = std::function<bool(const tensor_info&)>;

  /// To be filled, in memory of `memory`. `wanted` leaves out tensors; empty, it is all of them.
  /// @returns `frame_malformed` unless names ascend without repeats and every tensor has bytes,
  ///          `frame_too_large` past `bytes_max` or too many tensors or slices; `bad_config`
  ///          without memory.
  static result<std::shared_ptr<weight_cargo>>
  expecting(std::vector<tensor_info> tensors, std::uint32_t slice_bytes = weight_slice_bytes,
            const filter& wanted = {}, std::uint64_t bytes_max = weight_bytes_max,
            const tensor_memory& memory = tensor_memory{});

  /// Complete. `content[i]` are the bytes of `tensors[i]`, whose hash is trusted.
  /// @returns as `expecting`; `frame_malformed` for content of another size.
  static result<std::shared_ptr<weight_cargo>> of(std::vector<tensor_info> tensors,
                                                  std::vector<kept_bytes> content,
                                                  std::uint32_t slice_bytes = weight_slice_bytes);

  weight_cargo(const weight_cargo&) = delete;
  weight_cargo& operator=(const weight_cargo&) = delete;

  /// All of the manifest, wanted or not, in name order.
  const std::vector<tensor_info>& tensors() const noexcept { return tensors_; }
  /// `epoch_hash_of(tensors())`: two cargos with the same one number the same slices, if cut alike.
  const content_hash& manifest() const noexcept { return manifest_; }
  std::uint32_t slice_bytes() const noexcept { return slice_bytes_; }
  std::uint32_t slices() const noexcept { return static_cast<std::uint32_t>(tensor_of_.size()); }

  /// The slices of the tensor that `slice` belongs to: the first, and how many.
  std::pair<std::uint32_t, std::uint32_t> slices_of(std::uint32_t slice) const;
  /// Whether `slice` is of a tensor that was never wanted: it will not come.
  bool left_out(std::uint32_t slice) const;
  /// Bytes of a slice, whether it is here or not.
  std::uint64_t size_of(std::uint32_t slice) const;

  /// Copies the bytes of a slice in, and hashes what of its tensor has come without a gap.
  /// @returns `frame_malformed` for a slice that the manifest does not have or of another size,
  ///          and when a tensor had the wrong hash for the second time (detail: tensor, hashes);
  ///          as `tensor_memory::make` for the first slice after the first time, which is not here
  ///          then, as all of its tensor.
  result<outcome> put(std::uint32_t slice, std::span<const std::byte> bytes);

  bool has(std::uint32_t slice) const;
  /// The slice's bytes, once they are here. They may be of a tensor that is not proved yet.
  std::optional<kept_bytes> bytes_of_slice(std::uint32_t slice) const;

  /// Every wanted tensor is here and proved.
  bool complete() const;
  std::uint64_t bytes_wanted() const noexcept { return bytes_wanted_; }
  std::uint64_t bytes_here() const;

  /// The bytes of one tensor. @returns `bad_checkpoint` if the manifest does not name it, it was
  /// not wanted, or it is not here in full yet.
  result<kept_bytes> tensor(std::string_view name) const;

private:
  struct hold {
    /// What `put` writes to. Null if left out or given, or until the next `put` after its bytes
    /// were forgotten.
    std::shared_ptr<std::byte> memory;
    kept_bytes content;      ///< What readers see of it.
    std::uint32_t first = 0; ///< Its first slice.
    std::uint32_t count = 0;
    std::uint32_t here = 0;             ///< Slices that have come.
    std::uint32_t hashed = 0;           ///< Of them, those that `hash` holds: a run from the first.
    std::unique_ptr<running_hash> hash; ///< Touched by the thread that puts only.
    bool proved = false;
    bool doubted = false; ///< It had the wrong hash once.
  };

  weight_cargo() = default;
  static result<std::shared_ptr<weight_cargo>>
  make(std::vector<tensor_info> tensors, std::uint32_t slice_bytes, std::uint64_t bytes_max);
  std::uint64_t offset_of(std::uint32_t slice) const; ///< In its tensor.
  void take(hold& into, std::uint32_t slice, std::span<const std::byte> bytes);
  result<outcome> prove(std::uint32_t tensor);
  void forget(hold& whose);
  result<void> renew(hold& whose);

  std::vector<tensor_info> tensors_;
  content_hash manifest_;
  std::uint32_t slice_bytes_ = 0;
  std::uint64_t bytes_wanted_ = 0;
  tensor_memory memory_;
  std::vector<std::uint32_t> tensor_of_; ///< By slice.

  mutable std::mutex mutex_;
  std::vector<hold> holds_; ///< By tensor. Guarded by `mutex_`, as all below.
  std::vector<bool> here_;  ///< By slice.
  std::uint64_t bytes_here_ = 0;
  std::size_t unproved_ = 0; ///< Wanted tensors.
};

/// All tensors of a checkpoint directory that `wanted` names (empty: all), mapped and hashed by
/// `threads` threads. The files must stay as they are while the cargo lives: a file that is
/// shortened under its mapping ends the process.
/// @returns as `checkpoint::open` and `checkpoint::tensor`; `bad_checkpoint` for an empty tensor.
result<std::shared_ptr<weight_cargo>>
open_cargo(const std::filesystem::path& directory,
           const std::function<bool(std::string_view)>& wanted = {},
           std::uint32_t slice_bytes = weight_slice_bytes, std::size_t threads = 2);

} // namespace rollcast
