#include "cluster/weights/weight_cargo.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace rollcast {

result<std::shared_ptr<weight_cargo>> weight_cargo::make(std::vector<tensor_info> tensors,
                                                         std::uint32_t slice_bytes,
                                                         std::uint64_t bytes_max) {
  if (slice_bytes == 0)
    return fail(errc::bad_config, "weights cut into slices of 0 bytes; need at least 1");
  if (tensors.size() > weight_tensors_max)
    return fail(errc::frame_too_large, std::to_string(tensors.size()) + " tensors in one update, "
                                         + "at most " + std::to_string(weight_tensors_max));
  const std::shared_ptr<weight_cargo> made{new weight_cargo};
  std::uint64_t total = 0;
  std::uint64_t slices = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (i > 0 && tensors[i].name <= tensors[i - 1].name)
      return fail(errc::frame_malformed, "tensor " + tensors[i].name + " after "
                                           + tensors[i - 1].name
                                           + ": names of a manifest ascend, each once");
    const auto bytes = bytes_of(tensors[i]);
    if (bytes == 0)
      return fail(errc::frame_malformed, "tensor " + tensors[i].name + " has no elements");
    if (bytes > bytes_max || total > bytes_max - bytes)
      return fail(errc::frame_too_large, "update of more than " + std::to_string(bytes_max)
                                           + " bytes at tensor " + tensors[i].name + " of "
                                           + std::to_string(bytes));
    total += bytes;
    const auto count = (bytes - 1) / slice_bytes + 1;
    if (count > weight_slices_max || slices + count > weight_slices_max)
      return fail(errc::frame_too_large,
                  std::to_string(slices + count) + " slices of " + std::to_string(slice_bytes)
                    + " bytes, at most " + std::to_string(weight_slices_max) + "; use larger ones");
    hold h;
    h.first = static_cast<std::uint32_t>(slices);
    h.count = static_cast<std::uint32_t>(count);
    made->holds_.push_back(std::move(h));
    slices += count;
    made->tensor_of_.insert(made->tensor_of_.end(), count, static_cast<std::uint32_t>(i));
  }
  made->manifest_ = epoch_hash_of(tensors);
  made->tensors_ = std::move(tensors);
  made->slice_bytes_ = slice_bytes;
  made->here_.resize(slices, false);
  return made;
}

result<std::shared_ptr<weight_cargo>> weight_cargo::expecting(std::vector<tensor_info> tensors,
                                                              std::uint32_t slice_bytes,
                                                              const filter& wanted,
                                                              std::uint64_t bytes_max,
                                                              const tensor_memory& memory) {
  auto made = make(std::move(tensors), slice_bytes, bytes_max);
  if (!made)
    return made;
  auto& cargo = **made;
  cargo.memory_ = memory;
  for (std::size_t i = 0; i < cargo.tensors_.size(); ++i) {
    if (wanted && !wanted(cargo.tensors_[i]))
      continue;
    auto& h = cargo.holds_[i];
    const auto bytes = bytes_of(cargo.tensors_[i]);
    auto room = cargo.memory_.make(bytes);
    if (!room)
      return fail(room);
    h.memory = std::move(*room);
    h.content = {h.memory, {h.memory.get(), bytes}};
    cargo.bytes_wanted_ += bytes;
    ++cargo.unproved_;
  }
  return made;
}

result<std::shared_ptr<weight_cargo>> weight_cargo::of(std::vector<tensor_info> tensors,
                                                       std::vector<kept_bytes> content,
                                                       std::uint32_t slice_bytes) {
  ROLLCAST_CHECK(tensors.size() == content.size());
  auto made = make(std::move(tensors), slice_bytes, weight_bytes_max);
  if (!made)
    return made;
  auto& cargo = **made;
  for (std::size_t i = 0; i < content.size(); ++i) {
    const auto bytes = bytes_of(cargo.tensors_[i]);
    if (content[i].bytes.size() != bytes)
      return fail(errc::frame_malformed, "tensor " + cargo.tensors_[i].name + " has "
                                           + std::to_string(content[i].bytes.size())
                                           + " bytes, its shape needs " + std::to_string(bytes));
    auto& h = cargo.holds_[i];
    h.content = std::move(content[i]);
    h.here = h.count;
    h.proved = true;
    cargo.bytes_wanted_ += bytes;
  }
  cargo.bytes_here_ = cargo.bytes_wanted_;
  cargo.here_.assign(cargo.here_.size(), true);
  return made;
}

std::pair<std::uint32_t, std::uint32_t> weight_cargo::slices_of(std::uint32_t slice) const {
  ROLLCAST_CHECK(slice < slices());
  const auto& h = holds_[tensor_of_[slice]]; // `first` and `count` never change
  return {h.first, h.count};
}

bool weight_cargo::left_out(std::uint32_t slice) const {
  ROLLCAST_CHECK(slice < slices());
  const std::scoped_lock lock{mutex_};
  return holds_[tensor_of_[slice]].content.bytes.empty();
}

std::uint64_t weight_cargo::offset_of(std::uint32_t slice) const {
  return std::uint64_t{slice - holds_[tensor_of_[slice]].first} * slice_bytes_;
}

std::uint64_t weight_cargo::size_of(std::uint32_t slice) const {
  return std::min<std::uint64_t>(slice_bytes_,
                                 bytes_of(tensors_[tensor_of_[slice]]) - offset_of(slice));
}

result<weight_cargo::outcome> weight_cargo::put(std::uint32_t slice,
                                                std::span<const std::byte> bytes) {
  if (slice >= slices())
    return fail(errc::frame_malformed, "slice " + std::to_string(slice) + " of an update of "
                                         + std::to_string(slices()) + " slices");
  const auto tensor = tensor_of_[slice];
  if (bytes.size() != size_of(slice))
    return fail(errc::frame_malformed, "slice " + std::to_string(slice) + " of tensor "
                                         + tensors_[tensor].name + " has "
                                         + std::to_string(bytes.size()) + " bytes, expected "
                                         + std::to_string(size_of(slice)));
  auto& h = holds_[tensor];
  // Only this thread changes what is read here, so readers alone need the lock.
  if (here_[slice])
    return outcome::repeated;
  if (h.content.bytes.empty())
    return fail(errc::frame_malformed, "slice " + std::to_string(slice) + " is of tensor "
                                         + tensors_[tensor].name + ", which was not asked for");
  if (!h.memory)
    if (auto renewed = renew(h); !renewed)
      return fail(renewed);
  take(h, slice, bytes);
  if (h.hashed < h.count)
    return outcome::taken;
  return prove(tensor);
}

/// Copies and, while the bytes are in the cache, hashes.
void weight_cargo::take(hold& into, std::uint32_t slice, std::span<const std::byte> bytes) {
  constexpr std::size_t run = 128 * 1024;
  if (!into.hash)
    into.hash = std::make_unique<running_hash>();
  const bool next = into.hashed == slice - into.first;
  const auto to = into.memory.get() + offset_of(slice);
  for (std::size_t at = 0; at < bytes.size(); at += run) {
    const auto piece = bytes.subspan(at, std::min(run, bytes.size() - at));
    std::memcpy(to + at, piece.data(), piece.size());
    if (next)
      into.hash->update(piece);
  }
  into.hashed += next ? 1u : 0u;
  {
    const std::scoped_lock lock{mutex_};
    here_[slice] = true;
    ++into.here;
    bytes_here_ += bytes.size();
  }
  for (; into.hashed < into.count && here_[into.first + into.hashed]; ++into.hashed) {
    const auto at = into.first + into.hashed;
    into.hash->update({into.memory.get() + offset_of(at), size_of(at)});
  }
}

result<weight_cargo::outcome> weight_cargo::prove(std::uint32_t tensor) {
  auto& h = holds_[tensor];
  const auto digest = h.hash->digest();
  h.hash.reset();
  if (digest == tensors_[tensor].hash) {
    const std::scoped_lock lock{mutex_};
    h.proved = true;
    --unproved_;
    return outcome::taken;
  }
  forget(h);
  if (!std::exchange(h.doubted, true))
    return outcome::forgotten;
  return fail(errc::frame_malformed,
              "tensor " + tensors_[tensor].name + " came twice with another content: hash "
                + to_string(digest) + ", expected " + to_string(tensors_[tensor].hash)
                + "; memory or link of a peer corrupts");
}

/// All of a tensor lacks again, whether or not there is memory for it another time.
void weight_cargo::forget(hold& whose) {
  const std::scoped_lock lock{mutex_};
  whose.memory.reset();
  whose.here = 0;
  whose.hashed = 0;
  bytes_here_ -= whose.content.bytes.size();
  for (auto slice = whose.first; slice < whose.first + whose.count; ++slice)
    here_[slice] = false;
}

/// Gives a tensor other memory: what was handed out of the old may be on its way to a peer still.
result<void> weight_cargo::renew(hold& whose) {
  const auto bytes = whose.content.bytes.size();
  auto memory = memory_.make(bytes);
  if (!memory)
    return fail(memory);
  const std::scoped_lock lock{mutex_};
  whose.memory = std::move(*memory);
  whose.content = {whose.memory, {whose.memory.get(), bytes}};
  return {};
}

bool weight_cargo::has(std::uint32_t slice) const {
  const std::scoped_lock lock{mutex_};
  return slice < here_.size() && here_[slice];
}

std::optional<kept_bytes> weight_cargo::bytes_of_slice(std::uint32_t slice) const {
  const std::scoped_lock lock{mutex_};
  if (slice >= here_.size() || !here_[slice])
    return std::nullopt;
  const auto& whole = holds_[tensor_of_[slice]].content;
  return kept_bytes{whole.owner, whole.bytes.subspan(offset_of(slice), size_of(slice))};
}

bool weight_cargo::complete() const {
  const std::scoped_lock lock{mutex_};
  return unproved_ == 0;
}

std::uint64_t weight_cargo::bytes_here() const {
  const std::scoped_lock lock{mutex_};
  return bytes_here_;
}

result<kept_bytes> weight_cargo::tensor(std::string_view name) const {
  const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const auto& t, std::string_view n) { return t.name < n; });
  if (at == tensors_.end() || at->name != name)
    return fail(errc::bad_checkpoint, "the update has no tensor " + std::string(name));
  const std::scoped_lock lock{mutex_};
  const auto& h = holds_[static_cast<std::size_t>(at - tensors_.begin())];
  if (!h.proved)
    return fail(errc::bad_checkpoint, "tensor " + at->name
                                        + " of the update is not here: " + std::to_string(h.here)
                                        + " of " + std::to_string(h.count) + " slices");
  return h.content;
}

} // namespace rollcast
