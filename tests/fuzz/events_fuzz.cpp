// Goal: no bytes of a scheduler crash a client or pass as something they are not.
// Method: what is taken comes back the same from what encode writes. Log-probabilities may be NaN,
// which equals nothing, so bytes are compared.

#include "cluster/wire/codec.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto event = wire::decode_event(fuzz::bytes_of(fuzz::text_of(data, size)));
  if (!event) {
    fuzz::check_refusal(event.error());
    return 0;
  }
  const auto text = wire::encode(event->request_id, event->body);
  const auto again = wire::decode_event(fuzz::bytes_of(text));
  fuzz::require(again.has_value(), "what encode writes is taken");
  fuzz::require(wire::encode(again->request_id, again->body) == text, "decode(encode(x)) is x");
  return 0;
}
