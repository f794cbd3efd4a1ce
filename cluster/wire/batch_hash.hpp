#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/hash.hpp"

namespace rollcast::wire {

/// Hash of everything in a submission: equal content has equal hashes, whatever its key.
content_hash hash_of(const submit_batch& spec);

} // namespace rollcast::wire
