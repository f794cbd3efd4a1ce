#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/prng.hpp"

namespace rollcast::wire {

/// Returns a request of a random kind that every check lets pass. Optional parts are there half of
/// the time.
request random_request(prng& rng);

/// Returns an answer or something pushed, of a random kind and true to itself. Floats have random
/// bits, but are not NaN so that `==` compares them.
event random_event(prng& rng);

} // namespace rollcast::wire
