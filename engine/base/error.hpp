#pragma once

#include <tl/expected.hpp>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <string_view>
#include <utility>

namespace rollcast {

/// Every way an operation may fail for a reason outside the program. One byte, because
/// `caf::error` of CAF 0.17 carries one. Ranges name the owner; numbers go on the wire and are
/// never reused.
enum class errc : std::uint8_t {
  ok = 0,
  // 1..31: configuration, checkpoints and other input files
  bad_config = 1,
  bad_checkpoint = 2,
  bad_tokenizer = 3,
  bad_prompt = 4,
  bad_sampling = 5,
  io_failed = 6,
  // 32..63: engine
  out_of_kv_blocks = 32,
  unsupported_numerics = 33,
  // 64..95: transport
  peer_lost = 64,
  frame_malformed = 65,
  frame_too_large = 66,
  address_in_use = 67,
  timed_out = 68,
  unimplemented = 69,
  // 96..127: scheduling
  unknown_batch = 96,
  batch_conflict = 97,
  queue_full = 98,
  stale_epoch = 99,
  numerics_mismatch = 100,
  cancelled = 101,
  update_conflict = 102,
  not_permitted = 103,
};

/// Returns the stable lower-case name used in logs, metrics, the wire and tests.
constexpr std::string_view to_string(errc code) noexcept {
  switch (code) {
    case errc::ok: return "ok";
    case errc::bad_config: return "bad_config";
    case errc::bad_checkpoint: return "bad_checkpoint";
    case errc::bad_tokenizer: return "bad_tokenizer";
    case errc::bad_prompt: return "bad_prompt";
    case errc::bad_sampling: return "bad_sampling";
    case errc::io_failed: return "io_failed";
    case errc::out_of_kv_blocks: return "out_of_kv_blocks";
    case errc::unsupported_numerics: return "unsupported_numerics";
    case errc::peer_lost: return "peer_lost";
    case errc::frame_malformed: return "frame_malformed";
    case errc::frame_too_large: return "frame_too_large";
    case errc::address_in_use: return "address_in_use";
    case errc::timed_out: return "timed_out";
    case errc::unimplemented: return "unimplemented";
    case errc::unknown_batch: return "unknown_batch";
    case errc::batch_conflict: return "batch_conflict";
    case errc::queue_full: return "queue_full";
    case errc::stale_epoch: return "stale_epoch";
    case errc::numerics_mismatch: return "numerics_mismatch";
    case errc::cancelled: return "cancelled";
    case errc::update_conflict: return "update_conflict";
    case errc::not_permitted: return "not_permitted";
  }
  return "unknown";
}

/// What failed, said for the person who must act on it.
struct error {
  errc code = errc::ok;
  std::string detail; ///< What, where, the numbers, what to do: one line.
  std::source_location where;
};

template <class T>
using result = tl::expected<T, error>; // std::expected once we may use C++23

/// Makes a text one line of bounded length: what a peer or a file wrote is often a part of it, and
/// must not forge lines of a log or speak to a terminal. Control characters become `?`; of a longer
/// text the first 4096 bytes are kept, cut between characters of UTF-8.
[[nodiscard]] inline std::string one_line(std::string text) {
  constexpr std::size_t most = 4'096;
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      c = '?';
  if (text.size() <= most)
    return text;
  auto end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u)
    --end;
  text.resize(end);
  return text + "...";
}

/// Builds the failing side of a `result`, whose detail it makes one line.
[[nodiscard]] inline tl::unexpected<error>
fail(errc code, std::string detail, std::source_location where = std::source_location::current()) {
  return tl::unexpected(error{code, one_line(std::move(detail)), where});
}

/// Passes on the failure of one result as the failure of another.
template <class T>
[[nodiscard]] tl::unexpected<error> fail(const result<T>& failed) {
  return tl::unexpected(failed.error());
}

} // namespace rollcast
