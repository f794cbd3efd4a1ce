// Goal: no bytes of a controller crash the scheduler's decoder or pass as something they are not.
// Method: what is taken has passed `validate`, and comes back the same from what encode writes.

#include "cluster/wire/codec.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto bytes = fuzz::bytes_of(fuzz::text_of(data, size));
  const auto request = wire::decode_request(bytes);
  if (!request) {
    (void)wire::request_id_of(bytes);
    fuzz::check_refusal(request.error());
    return 0;
  }
  fuzz::require(request->request_id != 0, "a request has a number");
  fuzz::require(wire::request_id_of(bytes) == request->request_id, "an error reaches its asker");
  const auto text = wire::encode(request->request_id, request->body);
  const auto again = wire::decode_request(fuzz::bytes_of(text));
  fuzz::require(again.has_value(), "what encode writes is taken");
  fuzz::require(again->request_id == request->request_id && again->body == request->body,
                "decode(encode(x)) is x");
  return 0;
}
