#pragma once

#include "cluster/wire/messages.hpp"
#include "cluster/wire/validate.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace rollcast::wire {

/// Reads one request as it came from a controller: any bytes are allowed, and memory stays within a
/// small factor of their number. What is returned has passed `validate`.
///
/// @returns `frame_too_large` past `limits.message_bytes` or `limits.groups`; `frame_malformed` for
///          bytes that are no Envelope, another version, no known request, or a request id of 0;
///          what `validate` says for values out of range. Each is one line.
[[nodiscard]] result<request_envelope> decode_request(std::span<const std::byte> bytes);

/// Returns the request id of bytes that `decode_request` refused, so that the error reaches its
/// asker, or 0 when there is none to be found.
[[nodiscard]] std::uint64_t request_id_of(std::span<const std::byte> bytes) noexcept;

/// Returns the bytes of an answer (`request_id` of its request) or of something pushed (0).
/// @pre a `response_ready` has one log-probability a token, and one kept mass or none.
[[nodiscard]] std::string encode(std::uint64_t request_id, const event& body);

/// Returns the bytes of a request. Checks nothing: the scheduler does.
[[nodiscard]] std::string encode(std::uint64_t request_id, const request& body);

/// Reads one message as it came from a scheduler. An error code that this build does not know
/// becomes `unimplemented`, with its name in front of the message.
/// @returns `frame_too_large` or `frame_malformed`, one line.
[[nodiscard]] result<event_envelope> decode_event(std::span<const std::byte> bytes);

/// Returns a batch as bytes for a file. Unlike a message it may be larger than `message_bytes`:
/// what groups inherit is filled in.
[[nodiscard]] std::string stored(const submit_batch& batch);

/// Reads what `stored` returned; equal in all fields. Checks no bounds but that the bytes parse.
/// @returns `frame_malformed`, one line.
[[nodiscard]] result<submit_batch> stored_batch(std::span<const std::byte> bytes);

} // namespace rollcast::wire
