#include "cluster/drafts/draft_frame.hpp"

#include "engine/base/check.hpp"
#include "engine/base/hash.hpp"

#include <algorithm>

namespace rollcast {
namespace {

constexpr std::size_t head_bytes = 24;

template <class T>
void put(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    out.push_back(static_cast<char>((static_cast<std::uint64_t>(value) >> (8 * i)) & 0xffu));
}

/// Reads fields in order; past the end it gives zeros and remembers that it did.
class reader {
public:
  explicit reader(std::span<const std::byte> in) : in_(in) {}

  template <class T>
  T get() noexcept {
    if (in_.size() - at_ < sizeof(T)) {
      short_ = true;
      return T{};
    }
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bits |= static_cast<std::uint64_t>(in_[at_++]) << (8 * i);
    return static_cast<T>(bits);
  }

  std::size_t left() const noexcept { return in_.size() - at_; }
  bool ended_well() const noexcept { return !short_ && left() == 0; }

private:
  std::span<const std::byte> in_;
  std::size_t at_ = 0;
  bool short_ = false;
};

tl::unexpected<error> malformed(const std::string& what) {
  return fail(errc::frame_malformed, "draft frame " + what);
}

result<void> read_tokens(reader& in, draft_frame& frame) {
  frame.response = {in.get<std::uint64_t>()};
  frame.position = in.get<std::uint32_t>();
  frame.age_us = in.get<std::uint32_t>();
  const auto count = in.get<std::uint32_t>();
  if (count == 0 || count > draft_frame_tokens_max || in.left() != 4 * std::size_t{count})
    return malformed("says " + std::to_string(count) + " tokens and has "
                     + std::to_string(in.left()) + " bytes of them, at most "
                     + std::to_string(draft_frame_tokens_max) + " tokens may be");
  frame.tokens.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    frame.tokens.push_back(in.get<token_id>());
    if (frame.tokens.back() < 0)
      return malformed("has token " + std::to_string(frame.tokens.back()));
  }
  return {};
}

result<void> read_ends(reader& in, draft_frame& frame) {
  const auto count = in.get<std::uint32_t>();
  if (count > draft_frame_ends_max || in.left() != 16 * std::size_t{count})
    return malformed("says " + std::to_string(count) + " responses and has "
                     + std::to_string(in.left()) + " bytes of them, at most "
                     + std::to_string(draft_frame_ends_max) + " may be");
  frame.ends.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    draft_extent e;
    e.response = {in.get<std::uint64_t>()};
    e.known = in.get<std::uint32_t>();
    e.written = in.get<std::uint32_t>();
    if (e.known > draft_position_max || e.written > draft_position_max)
      return malformed("has a response of " + std::to_string(std::max(e.known, e.written))
                       + " tokens, at most " + std::to_string(draft_position_max) + " may be");
    frame.ends.push_back(e);
  }
  return {};
}

} // namespace

draft_group draft_group_of(group_id group, std::span<const token_id> prompt) noexcept {
  return {hash_of(prompt, group.value).low};
}

std::string encode(const draft_frame& frame) {
  ROLLCAST_CHECK(frame.tokens.size() <= draft_frame_tokens_max);
  ROLLCAST_CHECK(frame.ends.size() <= draft_frame_ends_max);
  std::string out;
  out.reserve(head_bytes + 24 + 4 * frame.tokens.size() + 16 * frame.ends.size());
  put(out, draft_frame_magic);
  put(out, static_cast<std::uint32_t>(frame.kind)); // its three high bytes are the zeros
  put(out, frame.incarnation);
  put(out, frame.group.value);
  if (frame.kind == draft_message::follow) {
    put(out, static_cast<std::uint32_t>(frame.ends.size()));
    for (const auto& e : frame.ends) {
      put(out, e.response.value);
      put(out, e.known);
      put(out, e.written);
    }
  } else if (frame.kind == draft_message::want) {
    put(out, frame.response.value);
    put(out, frame.position);
  } else if (frame.kind == draft_message::tokens) {
    put(out, frame.response.value);
    put(out, frame.position);
    put(out, frame.age_us);
    put(out, static_cast<std::uint32_t>(frame.tokens.size()));
    for (const auto token : frame.tokens)
      put(out, static_cast<std::uint32_t>(token));
  }
  return out;
}

result<draft_frame> decode_draft_frame(std::span<const std::byte> bytes) {
  reader in{bytes};
  if (const auto magic = in.get<std::uint32_t>(); magic != draft_frame_magic)
    return malformed("with magic " + std::to_string(magic)
                     + ": the peer is no worker, or of another version");
  const auto kind = in.get<std::uint32_t>();
  if (kind < static_cast<std::uint32_t>(draft_message::follow)
      || kind > static_cast<std::uint32_t>(draft_message::unknown))
    return malformed("of unknown kind " + std::to_string(kind));
  draft_frame frame;
  frame.kind = static_cast<draft_message>(kind);
  frame.incarnation = in.get<std::uint64_t>();
  frame.group = {in.get<std::uint64_t>()};
  result<void> read;
  if (frame.kind == draft_message::follow) {
    read = read_ends(in, frame);
  } else if (frame.kind == draft_message::tokens) {
    read = read_tokens(in, frame);
  } else if (frame.kind == draft_message::want) {
    frame.response = {in.get<std::uint64_t>()};
    frame.position = in.get<std::uint32_t>();
  }
  if (!read)
    return fail(read);
  if (frame.position > draft_position_max - draft_frame_tokens_max)
    return malformed("at position " + std::to_string(frame.position));
  if (!in.ended_well())
    return malformed("of " + std::to_string(bytes.size()) + " bytes, kind " + std::to_string(kind)
                     + " has another length");
  return frame;
}

} // namespace rollcast
