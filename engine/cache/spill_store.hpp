#pragma once

#include "engine/base/aligned_buffer.hpp"
#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/memory/kv_bytes.hpp"
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

/// KV images of responses that wait, outside the engine's blocks: in pages of memory while there
/// are any, then in pages of one file. Not thread-safe; the owner of the engine owns it.
///
/// The file is unlinked as soon as it is open, so nothing is left when the process dies. It is
/// written through the page cache and never synced: what it holds is worth nothing to another
/// process. An image may lie in any pages of both, so nothing is ever too scattered to be used, and
/// what an image takes is known beforehand: its bytes, up to a whole page.
class spill_store {
public:
  /// Opens the file if there is a disk part, and takes its space; of memory the addresses at once,
  /// and pages of up to 2 MiB as they are used. A page is a multiple of `unit_bytes` (KV of one
  /// group of positions), 64 KiB or a little more. Fails with `bad_config` (directory, free space,
  /// more memory than the machine has or gives).
  static result<std::unique_ptr<spill_store>> open(const spill_limits& limits,
                                                   std::uint64_t unit_bytes);
  ~spill_store();
  spill_store(const spill_store&) = delete;
  spill_store& operator=(const spill_store&) = delete;

  /// Keeps an image, in place of an older one of the same response. Fails with `out_of_kv_blocks`
  /// (detail: bytes, free) or `io_failed`; nothing of the response is kept then.
  result<void> put(const kv_manifest& manifest, kv_bytes image);
  bool holds(response_id response) const { return entries_.contains(response); }
  /// Reads an image; it stays until `drop`. Fails with `out_of_kv_blocks` if there is none, or
  /// `io_failed`. The caller proves the bytes by the manifest's hash (`engine::import_kv` does).
  result<kv_manifest> get(response_id response, kv_bytes& image) const;
  void drop(response_id response);

  std::uint64_t page_bytes() const noexcept { return page_bytes_; }
  std::uint64_t pages() const noexcept { return memory_.pages + disk_.pages; } ///< In all.
  std::uint64_t memory_used() const noexcept { return memory_.used() * page_bytes_; }
  std::uint64_t disk_used() const noexcept { return disk_.used() * page_bytes_; }

private:
  /// Which of a tier's pages are in use.
  struct tier {
    std::uint64_t pages = 0;
    std::uint64_t touched = 0;       ///< Ever given out; the others come after.
    std::vector<std::uint64_t> free; ///< Given out before, and given back.
    std::uint64_t used() const { return touched - free.size(); }
    std::uint64_t take();
  };
  struct entry {
    kv_manifest manifest;
    std::vector<std::uint64_t> memory_pages; ///< The image's beginning.
    std::vector<std::uint64_t> disk_pages;   ///< The rest.
  };

  spill_store(const spill_limits& limits, std::uint64_t unit_bytes);
  result<void> write(const entry& e, const kv_bytes& image);

  std::uint64_t page_bytes_ = 0;
  int file_ = -1;
  tier memory_;
  tier disk_;
  aligned_buffer pool_; ///< The memory pages, one after the other; resident as it is used.
  std::unordered_map<response_id, entry> entries_;
};

} // namespace rollcast
