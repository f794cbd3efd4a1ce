#include "engine/cache/spill_store.hpp"

#include "engine/base/machine_memory.hpp"

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

constexpr std::uint64_t page_bytes_wanted = 64 * 1024;

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
                                    + std::strerror(errno)
                                    + "; give one that exists by --kv-spill-dir");
  const auto free = std::uint64_t{room.f_bavail} * room.f_frsize;
  if (free < limits.disk_bytes)
    return fail(errc::bad_config,
                "KV spill directory " + directory.string() + " has " + std::to_string(free >> 20)
                  + " MiB free, " + std::to_string(limits.disk_bytes >> 20)
                  + " are to be used: lower --kv-spill-disk-mib or change --kv-spill-dir");
  auto name = (directory / "rollcast-kv-XXXXXX").string();
  const int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0)
    return fail(errc::bad_config, "KV spill directory " + directory.string()
                                    + ": cannot make a file: " + std::strerror(errno));
  ::unlink(name.c_str());
  // Taken now, so that two workers cannot be promised the same space; a file system that cannot do
  // that has been asked above.
  if (::fallocate(file, 0, 0, static_cast<off_t>(limits.disk_bytes)) != 0 && errno == ENOSPC) {
    ::close(file);
    return fail(errc::bad_config, "KV spill directory " + directory.string() + " has no room for "
                                    + std::to_string(limits.disk_bytes >> 20)
                                    + " MiB: lower --kv-spill-disk-mib or change --kv-spill-dir");
  }
  return file;
}

} // namespace

std::uint64_t spill_store::tier::take() {
  if (free.empty())
    return touched++;
  const auto page = free.back();
  free.pop_back();
  return page;
}

spill_store::spill_store(const spill_limits& limits, std::uint64_t unit_bytes)
  : page_bytes_((page_bytes_wanted + unit_bytes - 1) / unit_bytes * unit_bytes) {
  memory_.pages = limits.memory_bytes / page_bytes_;
  disk_.pages = limits.disk_bytes / page_bytes_;
}

spill_store::~spill_store() {
  if (file_ >= 0)
    ::close(file_);
}

result<std::unique_ptr<spill_store>> spill_store::open(const spill_limits& limits,
                                                       std::uint64_t unit_bytes) {
  const std::uint64_t memory = machine_memory_bytes();
  if (limits.memory_bytes > memory)
    return fail(errc::bad_config,
                std::to_string(limits.memory_bytes >> 20) + " MiB of memory for KV, there are "
                  + std::to_string(memory >> 20) + ": lower --kv-spill-memory-mib");
  std::unique_ptr<spill_store> store{new spill_store(limits, unit_bytes)};
  auto pool = aligned_buffer::make(store->memory_.pages * store->page_bytes_);
  if (!pool)
    return fail(errc::bad_config, "the system gives no " + std::to_string(limits.memory_bytes >> 20)
                                    + " MiB of memory for KV: lower --kv-spill-memory-mib");
  store->pool_ = std::move(*pool);
  if (store->disk_.pages > 0) {
    const auto file = open_file(limits);
    if (!file)
      return fail(file);
    store->file_ = *file;
  }
  return store;
}

result<void> spill_store::put(const kv_manifest& manifest, kv_bytes image) {
  drop(manifest.response);
  const auto need = (image.size() + page_bytes_ - 1) / page_bytes_;
  const auto in_memory = std::min(need, memory_.pages - memory_.used());
  const auto free = pages() - memory_.used() - disk_.used();
  if (need > free)
    return fail(errc::out_of_kv_blocks, "KV image of " + std::to_string(image.size())
                                          + " bytes, spill space has "
                                          + std::to_string(free * page_bytes_) + " free");
  entry e{manifest, {}, {}};
  for (std::uint64_t i = 0; i < need; ++i)
    i < in_memory ? e.memory_pages.push_back(memory_.take()) : e.disk_pages.push_back(disk_.take());
  auto written = write(e, image);
  entries_.emplace(manifest.response, std::move(e));
  if (!written)
    drop(manifest.response);
  return written;
}

result<void> spill_store::write(const entry& e, const kv_bytes& image) {
  std::uint64_t at = 0;
  const auto size_at = [&] { return std::min<std::uint64_t>(page_bytes_, image.size() - at); };
  for (const auto page : e.memory_pages) {
    std::memcpy(pool_.data() + page * page_bytes_, image.data() + at, size_at());
    at += size_at();
  }
  for (const auto page : e.disk_pages) {
    const auto size = size_at();
    const auto call = [&](std::uint64_t done, std::uint64_t left, std::uint64_t offset) {
      return ::pwrite(file_, image.data() + at + done, left, static_cast<off_t>(offset));
    };
    if (auto ok = move_all(call, page * page_bytes_, size, "writing"); !ok)
      return ok;
    at += size;
  }
  return {};
}

result<kv_manifest> spill_store::get(response_id response, kv_bytes& image) const {
  const auto it = entries_.find(response);
  if (it == entries_.end())
    return fail(errc::out_of_kv_blocks,
                "no KV of response " + std::to_string(response.value) + " is spilled here");
  const auto& e = it->second;
  image.resize(e.manifest.bytes);
  std::uint64_t at = 0;
  const auto size_at = [&] { return std::min<std::uint64_t>(page_bytes_, image.size() - at); };
  for (const auto page : e.memory_pages) {
    std::memcpy(image.data() + at, pool_.data() + page * page_bytes_, size_at());
    at += size_at();
  }
  for (const auto page : e.disk_pages) {
    const auto size = size_at();
    const auto call = [&](std::uint64_t done, std::uint64_t left, std::uint64_t offset) {
      return ::pread(file_, image.data() + at + done, left, static_cast<off_t>(offset));
    };
    if (auto ok = move_all(call, page * page_bytes_, size, "reading"); !ok)
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
  memory_.free.insert(memory_.free.end(), e.memory_pages.begin(), e.memory_pages.end());
  disk_.free.insert(disk_.free.end(), e.disk_pages.begin(), e.disk_pages.end());
  entries_.erase(it);
}

} // namespace rollcast
