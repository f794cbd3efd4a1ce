#pragma once

#include "engine/backend/backend.hpp"

#include <memory>
#include <string>

namespace rollcast {

/// Makes the weights of a device and those of a drafter's model on another change together: in
/// what is returned, tensors named `draft.NAME` are the drafter's NAME, and so are those of the
/// layer that it took out of the model's own files. An update may hold either or both; what it
/// lacks stays. Hash and tensors are those of the model alone, because no response depends on a
/// drafter.
///
/// Fails as the devices do, in the words of `draft.NAME` where it is a drafter's tensor.
///
/// @param draft  Shared with who drafts, on the same thread. @param layer  What the names of the
/// drafter's tensors in the model's own files begin with; "" if it is of other files.
std::unique_ptr<backend> with_draft_weights(std::unique_ptr<backend> device,
                                            std::shared_ptr<backend> draft, std::string layer);

} // namespace rollcast
