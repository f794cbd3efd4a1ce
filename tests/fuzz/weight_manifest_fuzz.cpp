// Goal: no manifest of an update and no slices of it crash a worker, take more memory than was
// allowed, or pass as weights that they are not.
// Method: the input is a manifest, then slices in any order, of any size. Small tensors carry the
// hash of their true content, so that whole updates come through too.

#include "cluster/weights/weight_cargo.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <algorithm>

namespace rollcast::fuzz {
namespace {

constexpr std::uint64_t room = 1u << 16;

/// What all tensors of the fuzzed updates hold, from their first byte on.
std::span<const std::byte> true_content() {
  static const std::vector<std::byte> bytes(room, std::byte{0x5a});
  return bytes;
}

std::vector<tensor_info> read_manifest(input_reader& in) {
  std::vector<tensor_info> tensors(in.number(1) % 8);
  for (auto& t : tensors) {
    t.name = in.take(in.number(1) % 16);
    const auto kind = in.number(1);
    t.type = static_cast<kernels::dtype>(kind % 3);
    for (auto dims = (kind >> 2) % 4; dims > 0; --dims)
      t.shape.push_back(in.number(kind & 0x80 ? 8 : 1));
    const auto bytes = bytes_of(t);
    t.hash = kind & 0x40 || bytes > room ? content_hash{in.number(8), 1}
                                         : hash_bytes(true_content().first(bytes));
  }
  return tensors;
}

void check_cargo(const weight_cargo& cargo) {
  std::uint64_t here = 0;
  for (std::uint32_t slice = 0; slice < cargo.slices(); ++slice) {
    const auto [first, count] = cargo.slices_of(slice);
    require(first <= slice && slice - first < count, "a slice is of one tensor");
    const auto bytes = cargo.bytes_of_slice(slice);
    require(bytes.has_value() == cargo.has(slice), "what is here can be read");
    here += bytes ? bytes->bytes.size() : 0;
  }
  require(here == cargo.bytes_here() && here <= cargo.bytes_wanted(), "bytes are counted");
  for (const auto& t : cargo.tensors()) {
    const auto content = cargo.tensor(t.name);
    require(content.has_value() || !cargo.complete(), "a complete update has every tensor");
    if (content)
      require(hash_bytes(content->bytes) == t.hash, "what can be read is proved");
    else
      check_refusal(content.error());
  }
}

void fill(weight_cargo& cargo, input_reader& in) {
  while (!in.empty()) {
    const auto what = in.number(1);
    const auto slice = static_cast<std::uint32_t>(in.number(what & 1 ? 4 : 1));
    const auto bytes = in.number(2);
    const auto given = what & 2 ? bytes_of(in.take(bytes))
                                : true_content().first(std::min<std::uint64_t>(bytes, room));
    if (const auto put = cargo.put(slice, given); !put)
      check_refusal(put.error());
  }
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  fuzz::input_reader in{fuzz::text_of(data, size)};
  const auto slice_bytes = static_cast<std::uint32_t>(in.number(4));
  const auto tensors = fuzz::read_manifest(in);
  // A peer of ours is not bounded to so little; without memory for tensors the rest must be small.
  const auto none =
    weight_cargo::expecting(tensors, slice_bytes, [](const auto&) { return false; });
  if (!none)
    fuzz::check_refusal(none.error());
  const auto cargo = weight_cargo::expecting(tensors, slice_bytes, {}, fuzz::room);
  if (!cargo) {
    fuzz::check_refusal(cargo.error());
    return 0;
  }
  fuzz::fill(**cargo, in);
  fuzz::check_cargo(**cargo);
  return 0;
}
