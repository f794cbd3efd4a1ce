#pragma once

// Inside cluster/wire only: the codec's part for weight updates, scoring and pausing.
#include "cluster/wire/envelope.hpp"
#include "cluster/wire/messages.hpp"

namespace rollcast::wire {

void to_wire(const score& from, v1::Envelope& envelope);
void to_wire(const begin_weights& from, v1::Envelope& envelope);
void to_wire(const weight_bucket& from, v1::Envelope& envelope);
void to_wire(const commit_weights& from, v1::Envelope& envelope);
void to_wire(const abort_weights& from, v1::Envelope& envelope);
void to_wire(const load_weights& from, v1::Envelope& envelope);
void to_wire(const rollback_weights& from, v1::Envelope& envelope);
void to_wire(const pause& from, v1::Envelope& envelope);
void to_wire(const resume& from, v1::Envelope& envelope);

void to_wire(const weights_begun& from, v1::Envelope& envelope);
void to_wire(const weights_served& from, v1::Envelope& envelope);
void to_wire(const scored& from, v1::Envelope& envelope);
void to_wire(const weights_status& from, v1::WeightsStatus* to);

/// Values are read as they are, `validate` looks at them; what has no place in our types is
/// refused here: `frame_malformed` for a flip, `bad_checkpoint` for a dtype or a hash.
[[nodiscard]] result<request> from_wire(const v1::BeginWeights& from);
/// Moves names and data out of `from`.
[[nodiscard]] result<request> from_wire(v1::WeightBucket& from);
[[nodiscard]] result<request> from_wire(const v1::CommitWeights& from);
[[nodiscard]] result<request> from_wire(const v1::LoadWeights& from);
[[nodiscard]] result<request> from_wire(const v1::Score& from);

/// @returns `frame_malformed` for a content hash that is none.
[[nodiscard]] result<event> from_wire(const v1::WeightsServed& from);
[[nodiscard]] event from_wire(const v1::WeightsBegun& from);
[[nodiscard]] event from_wire(const v1::Scored& from);
[[nodiscard]] weights_status from_wire(const v1::WeightsStatus& from);

} // namespace rollcast::wire
