#pragma once

#include "cluster/wire/messages.hpp"

#include <string>

namespace rollcast {

/// How the scheduler reaches its controllers. Thread-safe; does not block; what cannot be delivered
/// is dropped, because results stay in the batch book until they are acknowledged.
class controller_link {
public:
  virtual ~controller_link() = default;
  /// Sends an answer (`request_id` of its request) or something pushed (0) to `peer`.
  virtual void send(const std::string& peer, wire::event_envelope what) = 0;
};

} // namespace rollcast
