#include "cluster/weights/weight_stage.hpp"

#include "engine/model/tensor_text.hpp"

#include <algorithm>
#include <cstring>

namespace rollcast {
namespace {

std::string spelled(kernels::dtype type, std::span<const std::size_t> shape) {
  return std::string(name_of(type)) + " " + shown(shape);
}

result<void> check_name(std::string_view name, std::size_t bytes_max) {
  if (name.empty() || name.size() > bytes_max)
    return fail(errc::frame_malformed, "tensor name of " + std::to_string(name.size())
                                         + " bytes, need 1 to " + std::to_string(bytes_max));
  if (std::any_of(name.begin(), name.end(), [](char c) { return c >= 0 && c < ' '; }))
    return fail(errc::frame_malformed, "a tensor name of " + std::to_string(name.size())
                                         + " bytes has control characters");
  return {};
}

} // namespace

weight_stage::weight_stage(std::uint64_t update, weight_stage_limits limits, tensor_memory memory)
  : update_(update), limits_(limits), memory_(std::move(memory)),
    hasher_([this] { hash_full_ones(); }) {}

weight_stage::~weight_stage() {
  give_up();
  hasher_.join();
}

void weight_stage::give_up() {
  {
    const std::scoped_lock lock{mutex_};
    stopping_ = finished_ = true;
    kept_.reset();
  }
  changed_.notify_all();
}

result<void> weight_stage::add_slice(const tensor_slice& where, std::span<const std::byte> bytes) {
  part* into = nullptr;
  {
    const std::scoped_lock lock{mutex_};
    if (finished_)
      return fail(errc::cancelled, "weight update " + std::to_string(update_)
                                     + " was committed; begin another to send more");
    const auto found = part_of(where, bytes.size());
    if (!found)
      return fail(found);
    if (const auto claimed = claim(**found, where.offset, bytes.size()); !claimed)
      return claimed;
    into = *found; // stays where it is: a map moves nothing
  }
  std::memcpy(into->memory.get() + where.offset, bytes.data(), bytes.size());
  const std::scoped_lock lock{mutex_};
  bytes_here_ += bytes.size();
  into->copied += bytes.size();
  if (into->copied == into->bytes) {
    full_.push_back(into);
    changed_.notify_all();
  }
  return {};
}

/// Finds the tensor; makes it if all that is said of it holds.
result<weight_stage::part*> weight_stage::part_of(const tensor_slice& where, std::uint64_t bytes) {
  if (const auto named = check_name(where.name, limits_.name_bytes_max); !named)
    return fail(named);
  const std::string name{where.name};
  if (const auto at = parts_.find(where.name); at != parts_.end()) {
    const auto& known = at->second.info;
    if (known.type != where.type || !std::ranges::equal(known.shape, where.shape))
      return fail(errc::bad_checkpoint, "tensor " + name + " came as "
                                          + spelled(known.type, known.shape) + " before and as "
                                          + spelled(where.type, where.shape) + " now");
    if (const auto inside = check_bounds(at->second, where.offset, bytes); !inside)
      return fail(inside);
    return &at->second;
  }
  if (where.shape.size() > limits_.rank_max)
    return fail(errc::frame_malformed,
                "tensor " + name + " has " + std::to_string(where.shape.size())
                  + " dimensions, at most " + std::to_string(limits_.rank_max));
  part fresh;
  fresh.info = {name, where.type, {where.shape.begin(), where.shape.end()}, {}};
  fresh.bytes = bytes_of(fresh.info);
  if (fresh.bytes == 0 || fresh.bytes == UINT64_MAX)
    return fail(errc::frame_malformed,
                "tensor " + name + " of " + spelled(where.type, where.shape)
                  + (fresh.bytes == 0 ? " has no elements" : " has more than 2^64 bytes"));
  if (parts_.size() >= limits_.tensors_max)
    return fail(errc::frame_too_large, "tensor " + name + " is one more than the "
                                         + std::to_string(limits_.tensors_max)
                                         + " an update may have");
  if (fresh.bytes > limits_.bytes_max - bytes_declared_)
    return fail(errc::frame_too_large, "tensor " + name + " of " + std::to_string(fresh.bytes)
                                         + " bytes after " + std::to_string(bytes_declared_)
                                         + " of others, at most "
                                         + std::to_string(limits_.bytes_max) + " in one update");
  if (const auto inside = check_bounds(fresh, where.offset, bytes); !inside)
    return fail(inside);
  auto memory = memory_.make(fresh.bytes);
  if (!memory)
    return fail(memory);
  fresh.memory = std::move(*memory);
  bytes_declared_ += fresh.bytes;
  return &parts_.emplace(name, std::move(fresh)).first->second;
}

result<void> weight_stage::check_bounds(const part& p, std::uint64_t begin, std::uint64_t bytes) {
  if (bytes != 0 && begin < p.bytes && bytes <= p.bytes - begin)
    return {};
  return fail(errc::frame_malformed,
              said(p, begin, bytes) + ", which has " + std::to_string(p.bytes));
}

std::string weight_stage::said(const part& p, std::uint64_t begin, std::uint64_t bytes) {
  return "slice at byte " + std::to_string(begin) + " of " + std::to_string(bytes)
         + " bytes of tensor " + p.info.name;
}

result<void> weight_stage::claim(part& p, std::uint64_t begin, std::uint64_t bytes) {
  const auto end = begin + bytes;
  auto next = p.claimed.lower_bound(begin);
  const auto before = next == p.claimed.begin() ? p.claimed.end() : std::prev(next);
  const bool overlaps_before = before != p.claimed.end() && before->second > begin;
  if (overlaps_before || (next != p.claimed.end() && next->first < end)) {
    const auto& other = overlaps_before ? *before : *next;
    return fail(errc::batch_conflict,
                said(p, begin, bytes) + ": bytes " + std::to_string(other.first) + " to "
                  + std::to_string(other.second) + " came before; each byte is sent once");
  }
  const bool joins_before = before != p.claimed.end() && before->second == begin;
  const bool joins_next = next != p.claimed.end() && next->first == end;
  if (!joins_before && !joins_next && p.claimed.size() >= limits_.pieces_max)
    return fail(errc::frame_too_large,
                said(p, begin, bytes) + " would be piece " + std::to_string(p.claimed.size() + 1)
                  + ", at most " + std::to_string(limits_.pieces_max) + "; send slices in order");
  const auto at = joins_before ? before : p.claimed.emplace_hint(next, begin, end);
  at->second = end;
  if (joins_next) {
    at->second = next->second;
    p.claimed.erase(next);
  }
  return {};
}

std::uint64_t weight_stage::bytes_here() const {
  const std::scoped_lock lock{mutex_};
  return bytes_here_;
}

void weight_stage::hash_full_ones() {
  std::unique_lock lock{mutex_};
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !full_.empty(); });
    if (stopping_)
      return;
    const auto p = full_.front();
    full_.pop_front();
    lock.unlock();
    const auto hash = hash_bytes({p->memory.get(), p->bytes});
    lock.lock();
    p->info.hash = hash;
    p->hashed = true;
    changed_.notify_all();
  }
}

result<std::shared_ptr<weight_cargo>> weight_stage::finish(std::uint32_t slice_bytes) {
  std::unique_lock lock{mutex_};
  if (finished_)
    return fail(errc::cancelled,
                "weight update " + std::to_string(update_) + " was committed before");
  if (parts_.empty())
    return fail(errc::bad_checkpoint,
                "weight update " + std::to_string(update_) + " has no tensors");
  const part* gap = nullptr;
  std::size_t gaps = 0;
  for (const auto& [name, p] : parts_) {
    if (p.copied == p.bytes)
      continue;
    gap = gap == nullptr ? &p : gap;
    ++gaps;
  }
  if (gap != nullptr) {
    std::uint64_t begin = 0;
    auto next = gap->claimed.begin();
    if (next != gap->claimed.end() && next->first == 0)
      begin = next++->second;
    const auto end = next == gap->claimed.end() ? gap->bytes : next->first;
    return fail(errc::bad_checkpoint,
                std::to_string(gaps) + " tensors of weight update " + std::to_string(update_)
                  + " are incomplete: " + gap->info.name + " lacks bytes " + std::to_string(begin)
                  + " to " + std::to_string(end) + " of " + std::to_string(gap->bytes));
  }
  finished_ = true;
  kept_.reset();
  changed_.wait(lock, [this] {
    return stopping_
           || std::ranges::all_of(parts_, [](const auto& named) { return named.second.hashed; });
  });
  if (stopping_)
    return fail(errc::cancelled,
                "weight update " + std::to_string(update_) + " is not wanted any more");
  std::vector<tensor_info> tensors;
  std::vector<kept_bytes> content;
  for (auto& [name, p] : parts_) {
    tensors.push_back(std::move(p.info));
    content.push_back({p.memory, {p.memory.get(), p.bytes}});
  }
  parts_.clear();
  return weight_cargo::of(std::move(tensors), std::move(content), slice_bytes);
}

} // namespace rollcast
