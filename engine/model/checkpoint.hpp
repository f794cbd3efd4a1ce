#pragma once

#include "engine/base/error.hpp"
#include "engine/model/tensor_source.hpp"

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast {

/// A file mapped read-only, unmapped with the object.
class mapped_file {
public:
  /// @returns `io_failed` if the file cannot be opened or mapped. An empty file maps to no bytes.
  static result<mapped_file> open(const std::filesystem::path& path);

  mapped_file(mapped_file&& other) noexcept;
  mapped_file& operator=(mapped_file&& other) noexcept;
  ~mapped_file();

  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  const std::filesystem::path& path() const noexcept { return path_; }

private:
  mapped_file() = default;

  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

/// Where one tensor of a safetensors file lies, as its header says and as was checked.
struct tensor_entry {
  std::string dtype; ///< As the file spells it: "BF16", "F8_E4M3", ...
  std::vector<std::size_t> shape;
  std::size_t begin = 0; ///< Bytes from the start of the file.
  std::size_t end = 0;
};

/// Reads the header of a safetensors file that is wholly in `bytes`.
///
/// @returns `bad_checkpoint`, with `where` and what is wrong, unless: the header's length is in the
///          file and at most 100 MB; it is one JSON object without repeated names; each tensor has
///          dtype, shape and offsets of the right types; its bytes equal shape times dtype (for the
///          dtypes of the format); and the tensors fill the data section from first byte to last
///          without gap or overlap, as the format demands. So a file cut anywhere is refused.
/// Source: https://huggingface.co/docs/safetensors, "Format".
result<std::map<std::string, tensor_entry, std::less<>>>
parse_safetensors(std::span<const std::byte> bytes, std::string_view where);

/// A Hugging Face checkpoint directory: its tensors by name, mapped and not copied.
///
/// The files must not be shortened while this object lives: reading past the new end of a mapped
/// file ends the process. `model_weights` keeps no checkpoint once it has loaded.
///
/// A tensor of F8_E4M3 with its `NAME_scale_inv` is one tensor here, of BF16, widened when it is
/// first asked for and then held: everything behind this class sees the checkpoint that DeepSeek's
/// converter would have written. While such a checkpoint is open, it takes two bytes a weight.
class checkpoint final : public tensor_source {
public:
  /// Opens `model.safetensors` if it is there; else the shards that `model.safetensors.index.json`
  /// names; else every `*.safetensors`.
  /// @returns `io_failed` for a file that cannot be read; `bad_checkpoint` for no such file, a file
  ///          that `parse_safetensors` refuses, one name in two shards, an index that names a
  ///          shard outside of the directory, or a tensor that is not in the shard it names.
  static result<checkpoint> open(const std::filesystem::path& directory);

  std::vector<std::string_view> names() const override;
  bool contains(std::string_view name) const override { return tensors_.contains(name); }
  result<tensor_view> tensor(std::string_view name) const override;

  /// The type that `tensor` would give, without its bytes. Fails as it does.
  result<kernels::dtype> type_of(std::string_view name) const;

  /// A tensor of whole numbers or flags: its bytes as they lie in the file.
  /// @returns `bad_checkpoint` unless it is there with this dtype and one dimension.
  result<std::span<const std::byte>> list(std::string_view name, std::string_view dtype) const;

  /// The file that holds a tensor; the directory if none does.
  std::string origin(std::string_view name) const override;

  /// Gives a tensor's pages back to the system; they are read again if they are needed again.
  void release(const tensor_view& tensor) const noexcept override;

private:
  struct placed_tensor {
    tensor_entry entry;
    std::size_t file = 0; ///< In `files_`.
  };

  result<void> add_file(const std::filesystem::path& path);
  result<void> add_indexed(const std::filesystem::path& index);
  result<void> add_all();
  void pair_scales();
  std::span<const std::byte> bytes_of(const placed_tensor& placed) const {
    return files_[placed.file].bytes().subspan(placed.entry.begin,
                                               placed.entry.end - placed.entry.begin);
  }
  result<std::span<const std::byte>> widened(const std::string& name,
                                             const placed_tensor& placed) const;

  /// BF16 bytes by name, made once each.
  struct widened_tensors {
    std::mutex mutex;
    std::map<std::string, std::vector<std::byte>> made; ///< Guarded by `mutex`.
  };

  std::filesystem::path directory_;
  std::vector<mapped_file> files_;
  std::map<std::string, placed_tensor, std::less<>> tensors_;
  std::map<std::string, placed_tensor, std::less<>> scales_; ///< By the tensor they belong to.
  std::unique_ptr<widened_tensors> widened_ = std::make_unique<widened_tensors>();
};

} // namespace rollcast
