// Goal: no file crashes the reader of safetensors or places a tensor outside of it.
// Method: what is taken must tile the data section, as the format demands.

#include "engine/model/checkpoint.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto bytes = fuzz::bytes_of(fuzz::text_of(data, size));
  const auto tensors = parse_safetensors(bytes, "model.safetensors");
  if (!tensors) {
    fuzz::check_refusal(tensors.error());
    return 0;
  }
  std::size_t held = 0;
  for (const auto& [name, entry] : *tensors) {
    fuzz::require(entry.begin >= 8 && entry.begin <= entry.end && entry.end <= size,
                  "a tensor lies in its file");
    held += entry.end - entry.begin;
  }
  const auto header = fuzz::input_reader{fuzz::text_of(data, size)}.number(8);
  fuzz::require(held == size - 8 - header, "tensors fill the data section");
  return 0;
}
