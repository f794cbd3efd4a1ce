#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace rollcast::cli {

/// Bytes as RFC 4648 base64, padded.
std::string to_base64(std::string_view bytes);

/// The bytes back; none if the text is not what `to_base64` writes.
std::optional<std::string> from_base64(std::string_view text);

} // namespace rollcast::cli
