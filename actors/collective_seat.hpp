#pragma once

#include "actors/protocol.hpp"
#include "cluster/collective/runner.hpp"

#include <memory>

namespace rollcast {

/// Takes a worker's orders of its collective group to the runner at once, while a step or a request
/// for scores may hold the worker's own actor for a minute.
collective_seat_actor::behavior_type collective_seat(collective_seat_actor::pointer self,
                                                     std::shared_ptr<collective::runner> group);

} // namespace rollcast
