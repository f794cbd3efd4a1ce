#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/step/engine.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <unordered_map>
#include <vector>

namespace rollcast {

/// How much KV a worker keeps beside its blocks. All 0: none.
struct spill_limits {
  std::uint64_t memory_bytes = 0;
  std::uint64_t disk_bytes = 0;
  std::filesystem::path directory; ///< Of the disk part; must exist.
};

/// KV images of responses that wait, outside the engine's blocks: in memory while that has room,
/// then in one file. Not thread-safe; the owner of the engine owns it.
///
/// The file is unlinked as soon as it is open, so nothing is left when the process dies. It is
/// written through the page cache and never synced: what it holds is worth nothing to another
/// process. Images are spread over pages of `page_bytes`, so it never needs compaction.
class spill_store {
public:
  static constexpr std::uint64_t page_bytes = 256 * 1024;

  /// Opens the file if there is a disk part. Fails with `bad_config` (directory, free space).
  static result<std::unique_ptr<spill_store>> open(const spill_limits& limits);
  ~spill_store();
  spill_store(const spill_store&) = delete;
  spill_store& operator=(const spill_store&) = delete;

  /// Keeps an image, in place of an older one of the same response. Fails with `out_of_kv_blocks`
  /// (detail: bytes, free) or `io_failed`; nothing of the response is kept then.
  result<void> put(const kv_manifest& manifest, std::vector<std::byte> image);
  bool holds(response_id response) const { return entries_.contains(response); }
  /// Reads an image; it stays until `drop`. Fails with `out_of_kv_blocks` if there is none, or
  /// `io_failed`. The caller proves the bytes by the manifest's hash (`engine::import_kv` does).
  result<kv_manifest> get(response_id response, std::vector<std::byte>& image) const;
  void drop(response_id response);

  std::uint64_t memory_used() const noexcept { return memory_used_; } ///< Bytes.
  std::uint64_t disk_used() const noexcept;                           ///< Bytes, whole pages.
  std::uint64_t capacity() const noexcept { return limits_.memory_bytes + limits_.disk_bytes; }

private:
  struct entry {
    kv_manifest manifest;
    std::vector<std::byte> bytes;     ///< In memory, or
    std::vector<std::uint64_t> pages; ///< on disk.
  };

  explicit spill_store(const spill_limits& limits);
  result<void> write(const entry& e, const std::vector<std::byte>& image) const;

  spill_limits limits_;
  int file_ = -1;
  std::uint64_t memory_used_ = 0;
  std::uint64_t pages_ = 0;               ///< Of the file, in all.
  std::uint64_t pages_touched_ = 0;       ///< Ever given out: the file grows only as needed.
  std::vector<std::uint64_t> free_pages_; ///< Of those, given back.
  std::unordered_map<response_id, entry> entries_;
};

} // namespace rollcast
