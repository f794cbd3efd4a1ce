#pragma once

#include <zmq.hpp>

#include <string>

namespace rollcast {

/// Sends a frame, and its payload if there is one, to a peer of a ROUTER with `router_mandatory`;
/// never waits. @returns false if the peer has gone or does not read.
inline bool send_to_peer(zmq::socket_t& router, const std::string& peer, zmq::const_buffer head,
                         zmq::message_t* payload) {
  const auto more = zmq::send_flags::sndmore | zmq::send_flags::dontwait;
  try {
    // Only the first frame can fail: ZeroMQ accepts a message whole or not at all.
    if (!router.send(zmq::buffer(peer), more))
      return false;
    (void)router.send(head, payload != nullptr ? more : zmq::send_flags::dontwait);
    if (payload != nullptr)
      (void)router.send(*payload, zmq::send_flags::dontwait);
    return true;
  } catch (const zmq::error_t&) { // EHOSTUNREACH: the peer has gone
    return false;
  }
}

} // namespace rollcast
