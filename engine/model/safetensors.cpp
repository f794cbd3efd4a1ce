#include "engine/model/checkpoint.hpp"
#include "engine/model/json_reader.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

namespace rollcast {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr std::size_t length_bytes = 8;
constexpr std::uint64_t header_bytes_max = 100'000'000; // The reference reader's bound.
constexpr std::size_t rank_max = 8;

/// Bits of an element, or nothing for a type that the format does not have (yet): then only the
/// place of the bytes can be checked, which is enough for a tensor that nobody asks for.
std::optional<std::size_t> bits_of(std::string_view dtype) {
  struct row {
    std::string_view name;
    std::size_t bits;
  };
  constexpr std::array<row, 20> rows{{
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
    {"U16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32}, {"I64", 64},    {"U64", 64},    {"F64", 64},    {"C64", 64},
  }};
  for (const auto& r : rows) {
    if (r.name == dtype)
      return r.bits;
  }
  return std::nullopt;
}

/// Bytes of a shape, or nothing if that overflows or is not whole.
std::optional<std::size_t> bytes_of(const std::vector<std::size_t>& shape, std::size_t bits) {
  std::size_t total = bits;
  for (const std::size_t extent : shape) {
    if (__builtin_mul_overflow(total, extent, &total))
      return std::nullopt;
  }
  if (total % 8 != 0)
    return std::nullopt;
  return total / 8;
}

std::string shown(const std::vector<std::size_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

/// Reads the fields of one tensor; `data_bytes` is the length of the data section.
result<tensor_entry> parse_entry(const nlohmann::json& json, const std::string& where,
                                 std::size_t data_bytes) {
  const auto bad = [&](const std::string& what) {
    return fail(errc::bad_checkpoint, where + ": " + what);
  };
  if (!json.is_object())
    return bad("its header entry is not an object");
  const auto dtype = json.find("dtype");
  const auto shape = json.find("shape");
  const auto offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string())
    return bad("dtype is missing or not a string");
  if (shape == json.end() || !shape->is_array() || shape->size() > rank_max)
    return bad("shape is missing or not an array of at most " + std::to_string(rank_max));
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2
      || !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned())
    return bad("data_offsets is missing or not two whole numbers");
  tensor_entry out;
  out.dtype = dtype->get<std::string>();
  for (const auto& extent : *shape) {
    if (!extent.is_number_unsigned())
      return bad("shape holds " + printable(extent.dump(-1, ' ', true), 40)
                 + ", whole numbers are needed");
    out.shape.push_back(extent.get<std::size_t>());
  }
  out.begin = (*offsets)[0].get<std::size_t>();
  out.end = (*offsets)[1].get<std::size_t>();
  const std::string extent = "[" + std::to_string(out.begin) + ", " + std::to_string(out.end) + ")";
  if (out.begin > out.end || out.end > data_bytes)
    return bad("data_offsets " + extent + " are not within the file's " + std::to_string(data_bytes)
               + " data bytes; the file is truncated or damaged");
  if (const auto bits = bits_of(out.dtype)) {
    const auto needed = bytes_of(out.shape, *bits);
    if (!needed || *needed != out.end - out.begin)
      return bad("shape " + shown(out.shape) + " of " + out.dtype + " needs "
                 + (needed ? std::to_string(*needed) : "an impossible number of") + " bytes, "
                 + "data_offsets " + extent + " give " + std::to_string(out.end - out.begin));
  }
  return out;
}

using entry_map = std::map<std::string, tensor_entry, std::less<>>;

/// Checks that the entries tile [0, data_bytes), then makes their offsets relative to the file.
result<void> place_entries(entry_map& entries, std::size_t data_begin, std::size_t data_bytes,
                           std::string_view where) {
  std::vector<std::pair<const std::string*, tensor_entry*>> order;
  for (auto& [name, entry] : entries)
    order.emplace_back(&name, &entry);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  std::size_t at = 0;
  for (auto& [name, entry] : order) {
    if (entry->begin != at)
      return fail(errc::bad_checkpoint, std::string(where) + ": tensor " + printable(*name)
                                          + " begins at data byte " + std::to_string(entry->begin)
                                          + ", the one before it ends at " + std::to_string(at)
                                          + "; overlaps and gaps are not allowed");
    at = entry->end;
    entry->begin += data_begin;
    entry->end += data_begin;
  }
  if (at != data_bytes)
    return fail(errc::bad_checkpoint,
                std::string(where) + ": tensors end at data byte " + std::to_string(at)
                  + ", the file has " + std::to_string(data_bytes) + " data bytes; it is damaged");
  return {};
}

} // namespace

result<entry_map> parse_safetensors(std::span<const std::byte> bytes, std::string_view where) {
  const auto bad = [&](const std::string& what) {
    return fail(errc::bad_checkpoint, std::string(where) + ": " + what);
  };
  if (bytes.size() < length_bytes)
    return bad("not a safetensors file: " + std::to_string(bytes.size())
               + " bytes, at least 8 are needed");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), length_bytes);
  if (header_bytes > header_bytes_max)
    return bad("not a safetensors file: its header would have " + std::to_string(header_bytes)
               + " bytes, at most " + std::to_string(header_bytes_max) + " are accepted");
  if (header_bytes > bytes.size() - length_bytes)
    return bad("truncated: the header has " + std::to_string(header_bytes)
               + " bytes, the file only " + std::to_string(bytes.size()));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + length_bytes,
                              header_bytes);
  const auto header =
    parse_json_object(text, std::string(where) + ": header", errc::bad_checkpoint);
  if (!header)
    return fail(header);
  const std::size_t data_begin = length_bytes + header_bytes;
  const std::size_t data_bytes = bytes.size() - data_begin;
  entry_map entries;
  for (const auto& [name, json] : header->items()) {
    if (name == "__metadata__")
      continue;
    auto entry = parse_entry(json, std::string(where) + ": tensor " + printable(name), data_bytes);
    if (!entry)
      return fail(entry);
    entries.emplace(name, std::move(*entry));
  }
  if (const auto placed = place_entries(entries, data_begin, data_bytes, where); !placed)
    return fail(placed);
  return entries;
}

} // namespace rollcast
