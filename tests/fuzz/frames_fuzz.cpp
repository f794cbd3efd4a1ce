// Goal: no bytes of a peer crash the decoders of the three frames that workers exchange, and what
// is taken comes back the same.
// Method: the input goes to all three decoders; their magics differ.

#include "cluster/drafts/draft_frame.hpp"
#include "cluster/transport/kv_frame.hpp"
#include "cluster/weights/weight_frame.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <algorithm>

namespace rollcast::fuzz {
namespace {

template <class Decode>
void check(std::string_view input, Decode decode) {
  const auto frame = decode(bytes_of(input));
  if (!frame)
    return check_refusal(frame.error());
  const auto bytes = encode(*frame);
  const auto again = decode(std::as_bytes(std::span{bytes}));
  require(again.has_value(), "what encode writes is taken");
  require(*again == *frame, "decode(encode(x)) is x");
  require(std::size(bytes) == input.size(), "a frame has one length");
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto input = fuzz::text_of(data, size);
  fuzz::check(input, decode_kv_frame);
  fuzz::check(input, decode_weight_frame);
  fuzz::check(input, decode_draft_frame);
  return 0;
}
