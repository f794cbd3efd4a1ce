#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "kernels/types.hpp"

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast {

/// One tensor, in memory that its source holds.
struct tensor_view {
  std::string name;
  kernels::dtype type = kernels::dtype::f32;
  std::vector<std::size_t> shape;
  std::span<const std::byte> bytes;      ///< Row-major, little-endian, perhaps not aligned.
  std::optional<content_hash> hash = {}; ///< Of the bytes, where their source has proved it.
};

/// Where the tensors of a model come from: a directory, or what a process was sent. Its members may
/// be called from several threads at once.
class tensor_source {
public:
  virtual ~tensor_source() = default;

  /// Names of all tensors, ascending.
  virtual std::vector<std::string_view> names() const = 0;

  virtual bool contains(std::string_view name) const = 0;

  /// @returns the tensor, valid while this object lives; `bad_checkpoint` if it is missing or not
  ///          of type BF16, F16 or F32.
  virtual result<tensor_view> tensor(std::string_view name) const = 0;

  /// Where a tensor comes from, for errors: a file, or "update to epoch 7". For a name that is not
  /// here, where the source as a whole comes from.
  virtual std::string origin(std::string_view name) const = 0;

  /// Says that a tensor's bytes are not needed again soon, to a source that can then save memory.
  virtual void release(const tensor_view&) const noexcept {}
};

/// Tensors in memory, each kept alive by an owner of its bytes.
class tensor_set final : public tensor_source {
public:
  /// @param origin  Of all its tensors, for errors: "update to epoch 7".
  explicit tensor_set(std::string origin) : origin_(std::move(origin)) {}

  /// Adds a tensor. Fails with `bad_checkpoint` if its name is here already, or if its bytes are
  /// not as many as its shape and type have.
  /// @param owner  Held as long as this object lives; the bytes must live as long as it does.
  result<void> add(tensor_view tensor, std::shared_ptr<const void> owner);

  std::vector<std::string_view> names() const override;
  bool contains(std::string_view name) const override { return tensors_.contains(name); }
  result<tensor_view> tensor(std::string_view name) const override;
  std::string origin(std::string_view) const override { return origin_; }

private:
  struct held_tensor {
    tensor_view view;
    std::shared_ptr<const void> owner;
  };

  std::string origin_;
  std::map<std::string, held_tensor, std::less<>> tensors_;
};

/// The tensors of another source whose names begin with a prefix.
class tensor_subset final : public tensor_source {
public:
  /// @param all  Must live as long.
  tensor_subset(const tensor_source& all, std::string prefix)
    : all_(all), prefix_(std::move(prefix)) {}

  std::vector<std::string_view> names() const override;
  bool contains(std::string_view name) const override {
    return name.starts_with(prefix_) && all_.contains(name);
  }
  result<tensor_view> tensor(std::string_view name) const override { return all_.tensor(name); }
  std::string origin(std::string_view name) const override { return all_.origin(name); }
  void release(const tensor_view& tensor) const noexcept override { all_.release(tensor); }

private:
  const tensor_source& all_;
  std::string prefix_;
};

} // namespace rollcast
