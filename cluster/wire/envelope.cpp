#include "cluster/wire/envelope.hpp"

#include "cluster/wire/validate.hpp"

#include <google/protobuf/stubs/logging.h>

namespace rollcast::wire {

tl::unexpected<error> no_envelope(std::size_t bytes) {
  return fail(errc::frame_malformed, "a message of " + std::to_string(bytes)
                                       + " bytes is no rollcast.v1.Envelope: is the peer a "
                                         "Rollcast controller or scheduler?");
}

result<v1::Envelope> parse_envelope(std::span<const std::byte> bytes) {
  if (bytes.size() > limits.message_bytes)
    return fail(errc::frame_too_large, "a message of " + std::to_string(bytes.size())
                                         + " bytes, at most " + std::to_string(limits.message_bytes)
                                         + " are allowed");
  v1::Envelope envelope;
  // Protobuf would print a line for each string that is not UTF-8: a peer could fill our log.
  const google::protobuf::LogSilencer silencer;
  if (!envelope.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return no_envelope(bytes.size());
  if (envelope.version() != protocol_version)
    return fail(errc::frame_malformed, "protocol version " + std::to_string(envelope.version())
                                         + " is not ours, " + std::to_string(protocol_version)
                                         + ": use a matching release");
  return envelope;
}

v1::Envelope make_envelope(std::uint64_t request_id) {
  v1::Envelope envelope;
  envelope.set_version(protocol_version);
  envelope.set_request_id(request_id);
  return envelope;
}

} // namespace rollcast::wire
