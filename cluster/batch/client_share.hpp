#pragma once

#include "cluster/batch/batch_book.hpp"
#include "cluster/security/client_limits.hpp"

namespace rollcast {

/// Whether a client may have one more batch in work beside those that it has, by its name as the
/// batches carry it. Batches without a name are nobody's. @returns `queue_full` with the numbers.
result<void> check_share(const batch_book& book, const std::string& client,
                         const client_limits& limits, const wire::submit_batch& more);

} // namespace rollcast
