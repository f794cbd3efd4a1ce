#pragma once

#include <zmq.hpp>

#include <algorithm>
#include <chrono>

namespace rollcast {

/// Has the kernel end a TCP connection of this socket whose host is silent, or that takes nothing
/// in of what is sent to it, for about `span`. Set before the socket binds or connects.
///
/// Not by ZeroMQ's own heartbeats: libzmq, 4.3.4 and those after it, aborts the process
/// (`!_io_error` in stream_engine_base.cpp) where one is due on a connection that was reset while
/// what came by it waits for a reader; and where a peer's ping is among that, so that none of our
/// sockets may send any. @throws zmq::error_t
inline void end_silent_connections(zmq::socket_t& socket, std::chrono::milliseconds span) {
  const auto third = std::max(1, static_cast<int>(span.count() / 3'000)); // seconds
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  socket.set(zmq::sockopt::tcp_keepalive_idle, third);
  socket.set(zmq::sockopt::tcp_keepalive_intvl, third);
  socket.set(zmq::sockopt::tcp_keepalive_cnt, 2);
  socket.set(zmq::sockopt::tcp_maxrt, static_cast<int>(span.count()));
}

} // namespace rollcast
