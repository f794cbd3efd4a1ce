#pragma once

// Inside cluster/wire only: the generated code stops here.
#include "engine/base/error.hpp"
#include "proto/rollcast.pb.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rollcast::wire {

namespace v1 = ::rollcast::v1;

/// Builds the refusal of bytes that do not parse.
tl::unexpected<error> no_envelope(std::size_t bytes);

/// Parses bytes into an Envelope of our version. @returns `frame_too_large` or `frame_malformed`.
result<v1::Envelope> parse_envelope(std::span<const std::byte> bytes);

/// Returns an Envelope of our version without a body.
v1::Envelope make_envelope(std::uint64_t request_id);

template <class T, class Field>
std::vector<T> to_vector(const Field& field) {
  return {field.begin(), field.end()};
}

template <class T, class Field>
void assign(Field* field, const std::vector<T>& values) {
  field->Add(values.begin(), values.end());
}

} // namespace rollcast::wire
