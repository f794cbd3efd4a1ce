#include "engine/cache/spill_store.hpp"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

namespace rollcast {

namespace {

std::uint64_t pages_for(std::uint64_t bytes) {
  return (bytes + spill_store::page_bytes - 1) / spill_store::page_bytes;
}

/// Moves `size` bytes between memory and the file, however many calls that takes.
template <class Call>
result<void> move_all(Call call, std::uint64_t offset, std::uint64_t size, const char* what) {
  for (std::uint64_t done = 0; done < size;) {
    const auto n = call(done, size - done, offset + done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return fail(errc::io_failed,
                  std::string{"KV spill file: "} + what + " of " + std::to_string(size - done)
                    + " bytes failed: " + (n < 0 ? std::strerror(errno) : "the file ends"));
    done += static_cast<std::uint64_t>(n);
  }
  return {};
}

result<int> open_file(const spill_limits& limits) {
  struct statvfs room = {};
  const auto& directory = limits.directory;
  if (::statvfs(directory.c_str(), &room) != 0)
    return fail(errc::bad_config, "KV spill directory " + directory.string() + ": "
                                    + std::strerror(errno) + "; give one that exists");
  const auto free = std::uint64_t{room.f_bavail} * room.f_frsize;
  if (free < limits.disk_bytes)
    return fail(errc::bad_config, "KV spill directory " + directory.string() + " has "
                                    + std::to_string(free >> 20) + " MiB free, "
                                    + std::to_string(limits.disk_bytes >> 20)
                                    + " are to be used; give less or another directory");
  auto name = (directory / "rollcast-kv-XXXXXX").string();
  const int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0)
    return fail(errc::bad_config, "KV spill directory " + directory.string()
                                    + ": cannot make a file: " + std::strerror(errno));
  ::unlink(name.c_str());
  return file;
}

} // namespace

spill_store::spill_store(const spill_limits& limits)
  : limits_(limits), pages_(limits.disk_bytes / page_bytes) {}

spill_store::~spill_store() {
  if (file_ >= 0)
    ::close(file_);
}

result<std::unique_ptr<spill_store>> spill_store::open(const spill_limits& limits) {
  std::unique_ptr<spill_store> store{new spill_store(limits)};
  if (limits.disk_bytes > 0) {
    const auto file = open_file(limits);
    if (!file)
      return fail(file);
    store->file_ = *file;
  }
  return store;
}

std::uint64_t spill_store::disk_used() const noexcept {
  return (pages_touched_ - free_pages_.size()) * page_bytes;
}

result<void> spill_store::put(const kv_manifest& manifest, std::vector<std::byte> image) {
  drop(manifest.response);
  entry e{manifest, {}, {}};
  if (image.size() <= limits_.memory_bytes - memory_used_) {
    memory_used_ += image.size();
    e.bytes = std::move(image);
    entries_.emplace(manifest.response, std::move(e));
    return {};
  }
  const auto need = pages_for(image.size());
  const auto free = pages_ - pages_touched_ + free_pages_.size();
  if (need > free)
    return fail(errc::out_of_kv_blocks,
                "KV image of " + std::to_string(image.size()) + " bytes, spill space has "
                  + std::to_string(limits_.memory_bytes - memory_used_) + " free in memory, "
                  + std::to_string(free * page_bytes) + " on disk");
  for (std::uint64_t i = 0; i < need; ++i) {
    if (free_pages_.empty())
      free_pages_.push_back(pages_touched_++);
    e.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  auto written = write(e, image);
  const auto it = entries_.emplace(manifest.response, std::move(e)).first;
  if (!written)
    drop(it->first);
  return written;
}

result<void> spill_store::write(const entry& e, const std::vector<std::byte>& image) const {
  std::uint64_t at = 0;
  for (const auto page : e.pages) {
    const auto size = std::min<std::uint64_t>(page_bytes, image.size() - at);
    const auto call = [&](std::uint64_t done, std::uint64_t left, std::uint64_t offset) {
      return ::pwrite(file_, image.data() + at + done, left, static_cast<off_t>(offset));
    };
    if (auto ok = move_all(call, page * page_bytes, size, "writing"); !ok)
      return ok;
    at += size;
  }
  return {};
}

result<kv_manifest> spill_store::get(response_id response, std::vector<std::byte>& image) const {
  const auto it = entries_.find(response);
  if (it == entries_.end())
    return fail(errc::out_of_kv_blocks,
                "no KV of response " + std::to_string(response.value) + " is spilled here");
  const auto& e = it->second;
  if (e.pages.empty()) {
    image = e.bytes;
    return e.manifest;
  }
  image.resize(e.manifest.bytes);
  std::uint64_t at = 0;
  for (const auto page : e.pages) {
    const auto size = std::min<std::uint64_t>(page_bytes, image.size() - at);
    const auto call = [&](std::uint64_t done, std::uint64_t left, std::uint64_t offset) {
      return ::pread(file_, image.data() + at + done, left, static_cast<off_t>(offset));
    };
    if (auto ok = move_all(call, page * page_bytes, size, "reading"); !ok)
      return fail(ok);
    at += size;
  }
  return e.manifest;
}

void spill_store::drop(response_id response) {
  const auto it = entries_.find(response);
  if (it == entries_.end())
    return;
  auto& e = it->second;
  memory_used_ -= e.bytes.size();
  free_pages_.insert(free_pages_.end(), e.pages.begin(), e.pages.end());
  entries_.erase(it);
}

} // namespace rollcast
