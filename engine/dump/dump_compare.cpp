#include "engine/dump/dump_compare.hpp"

#include "engine/dump/dump_format.hpp"
#include "engine/model/checkpoint.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <span>
#include <utility>

namespace rollcast {

namespace {

struct dump {
  std::filesystem::path directory;
  dump_header header;
};

tl::unexpected<error> not_alike(const dump& a, const dump& b, const std::string& what,
                                const std::string& in_a, const std::string& in_b) {
  return fail(errc::bad_config, what + " is " + in_a + " in " + a.directory.string() + " and "
                                  + in_b + " in " + b.directory.string()
                                  + ": only dumps of the same sequences and shapes compare");
}

result<void> check_sequences(const dump& a, const dump& b) {
  const auto& in_a = a.header.sequences;
  const auto& in_b = b.header.sequences;
  if (in_a.size() != in_b.size())
    return not_alike(a, b, "the number of sequences", std::to_string(in_a.size()),
                     std::to_string(in_b.size()));
  for (std::size_t i = 0; i < in_a.size(); ++i) {
    const std::string which = " of sequence " + std::to_string(i);
    if (in_a[i].tokens != in_b[i].tokens)
      return not_alike(a, b, "the number of tokens" + which, std::to_string(in_a[i].tokens),
                       std::to_string(in_b[i].tokens));
    if (in_a[i].prompt_tokens != in_b[i].prompt_tokens)
      return not_alike(a, b, "the prompt's length" + which, std::to_string(in_a[i].prompt_tokens),
                       std::to_string(in_b[i].prompt_tokens));
    if (in_a[i].token_ids != in_b[i].token_ids)
      return not_alike(a, b, "the hash of the token ids" + which, to_string(in_a[i].token_ids),
                       to_string(in_b[i].token_ids));
  }
  return {};
}

/// The operations that both dumps have, of the same widths.
result<std::vector<operation>> shared_operations(const dump& a, const dump& b,
                                                 std::vector<std::string>& notes) {
  if (a.header.layers != b.header.layers)
    return not_alike(a, b, "the number of layers", std::to_string(a.header.layers),
                     std::to_string(b.header.layers));
  std::vector<operation> shared;
  for (std::size_t i = 0; i < operation_names.size(); ++i) {
    const auto what = static_cast<operation>(i);
    const auto find = [&](const dump& d) -> const dump_operation* {
      const auto at = std::ranges::find(d.header.operations, what, &dump_operation::what);
      return at == d.header.operations.end() ? nullptr : &*at;
    };
    const auto* const in_a = find(a);
    const auto* const in_b = find(b);
    if (in_a != nullptr && in_b != nullptr && in_a->columns != in_b->columns)
      return not_alike(a, b, "the width of " + std::string{name_of(what)},
                       std::to_string(in_a->columns), std::to_string(in_b->columns));
    if (in_a != nullptr && in_b != nullptr)
      shared.push_back(what);
    else if (in_a != nullptr || in_b != nullptr)
      notes.push_back(std::string{name_of(what)} + " is not compared: only "
                      + (in_a != nullptr ? a : b).directory.string() + " has it");
  }
  if (shared.empty())
    return fail(errc::bad_config, a.directory.string() + " and " + b.directory.string()
                                    + " have no operation in common");
  return shared;
}

void add_notes(const dump& a, const dump& b, std::vector<std::string>& notes) {
  const auto note = [&](const std::string& what, const std::string& in_a, const std::string& in_b) {
    if (in_a != in_b && !in_a.empty() && !in_b.empty()) // a dump need not know
      notes.push_back(what + ": " + in_a + " and " + in_b);
  };
  note("weights", a.header.weights_hash, b.header.weights_hash);
  note("numerics profile", a.header.numerics_profile, b.header.numerics_profile);
  note("numerics hash", a.header.numerics_hash, b.header.numerics_hash);
  note("rollcast", a.header.rollcast_version, b.header.rollcast_version);
  for (std::size_t i = 0; i < a.header.sequences.size(); ++i) {
    const float in_a = a.header.sequences[i].temperature;
    const float in_b = b.header.sequences[i].temperature;
    if (in_a == in_b)
      continue;
    notes.push_back("temperature of sequence " + std::to_string(i) + ": " + std::to_string(in_a)
                    + " and " + std::to_string(in_b) + " (logprob alone depends on it)");
    return;
  }
}

/// The values of one row, after a check that they are those that were hashed.
result<std::vector<float>> row_values(const dump& d, std::size_t sequence, const dump_block& block,
                                      std::uint32_t row, std::span<const std::byte> hash) {
  const auto path = d.directory / values_file(sequence);
  const auto file = mapped_file::open(path);
  if (!file)
    return fail(file);
  const std::size_t row_bytes = std::size_t{block.columns} * sizeof(float);
  const std::uint64_t at = block.values_at + row * std::uint64_t{row_bytes};
  if (file->bytes().size() < at + row_bytes)
    return fail(errc::bad_config, path.string() + ": was cut while it was read");
  std::vector<float> values(block.columns);
  std::memcpy(values.data(), file->bytes().data() + at, row_bytes);
  std::array<std::byte, dump_hash_bytes> expected;
  put_hash(hash_of(std::span{values}), expected.data());
  if (!std::ranges::equal(expected, hash))
    return fail(errc::bad_config, path.string() + ": the values at byte " + std::to_string(at)
                                    + " are not those that " + hashes_file(sequence)
                                    + " was made of: the dump is damaged");
  return values;
}

/// The hashes of one block in a mapped file.
std::span<const std::byte> hashes_of(const mapped_file& file, const dump_block& block) {
  return file.bytes().subspan(block.hashes_at, std::size_t{block.rows} * dump_hash_bytes);
}

/// Compares one sequence, block by block; stops at the first that differs.
class sequence_comparer {
public:
  sequence_comparer(const dump& a, const dump& b, std::size_t sequence)
    : a_(a), b_(b), sequence_(sequence) {}

  result<void> compare(std::span<const operation> shared, dump_comparison& out) {
    const auto file_a = mapped_file::open(a_.directory / hashes_file(sequence_));
    if (!file_a)
      return fail(file_a);
    const auto file_b = mapped_file::open(b_.directory / hashes_file(sequence_));
    if (!file_b)
      return fail(file_b);
    const auto blocks_a = blocks_of(a_.header, a_.header.sequences[sequence_]);
    const auto blocks_b = blocks_of(b_.header, b_.header.sequences[sequence_]);
    for (const auto& block : blocks_a) {
      if (std::ranges::find(shared, block.what) == shared.end())
        continue;
      const auto& other =
        blocks_b[static_cast<std::size_t>(block_index(b_.header, block.what, block.layer))];
      const auto hashes_a = hashes_of(*file_a, block);
      const auto hashes_b = hashes_of(*file_b, other);
      out.rows += block.rows;
      if (!std::ranges::equal(hashes_a, hashes_b))
        return describe(block, other, hashes_a, hashes_b, out);
    }
    return {};
  }

private:
  result<void> describe(const dump_block& block, const dump_block& other,
                        std::span<const std::byte> hashes_a, std::span<const std::byte> hashes_b,
                        dump_comparison& out) {
    dump_difference found;
    found.sequence = sequence_;
    found.name = a_.header.sequences[sequence_].name;
    found.what = block.what;
    found.layer = block.layer;
    found.rows = block.rows;
    const auto row_hash = [](std::span<const std::byte> hashes, std::uint32_t row) {
      return hashes.subspan(std::size_t{row} * dump_hash_bytes, dump_hash_bytes);
    };
    std::uint32_t first = 0;
    for (std::uint32_t row = block.rows; row-- > 0;)
      if (!std::ranges::equal(row_hash(hashes_a, row), row_hash(hashes_b, row))) {
        first = row;
        ++found.differing;
      }
    found.row = block.first + first;
    if (first < block.value_rows && first < other.value_rows) {
      const auto in_a = row_values(a_, sequence_, block, first, row_hash(hashes_a, first));
      if (!in_a)
        return fail(in_a);
      const auto in_b = row_values(b_, sequence_, other, first, row_hash(hashes_b, first));
      if (!in_b)
        return fail(in_b);
      for (std::uint32_t column = 0; column < block.columns && !found.at; ++column)
        if (std::bit_cast<std::uint32_t>((*in_a)[column])
            != std::bit_cast<std::uint32_t>((*in_b)[column]))
          found.at = {column, block.columns, (*in_a)[column], (*in_b)[column]};
    }
    out.first = std::move(found);
    return {};
  }

  const dump& a_;
  const dump& b_;
  std::size_t sequence_;
};

} // namespace

result<dump_comparison> compare_dumps(const std::filesystem::path& a,
                                      const std::filesystem::path& b) {
  auto header_a = read_dump_header(a);
  if (!header_a)
    return fail(header_a);
  auto header_b = read_dump_header(b);
  if (!header_b)
    return fail(header_b);
  const dump in_a{a, std::move(*header_a)};
  const dump in_b{b, std::move(*header_b)};
  dump_comparison out;
  add_notes(in_a, in_b, out.notes);
  const auto shared = shared_operations(in_a, in_b, out.notes);
  if (!shared)
    return fail(shared);
  if (auto ok = check_sequences(in_a, in_b); !ok)
    return fail(ok);
  for (std::size_t i = 0; i < in_a.header.sequences.size() && !out.first; ++i) {
    if (auto ok = sequence_comparer{in_a, in_b, i}.compare(*shared, out); !ok)
      return fail(ok);
    ++out.sequences;
  }
  return out;
}

std::string to_text(const dump_difference& difference) {
  std::string text = "sequence " + std::to_string(difference.sequence);
  if (!difference.name.empty())
    text += " (" + difference.name + ")";
  if (in_layers(difference.what))
    text += ", layer " + std::to_string(difference.layer);
  text += ", " + std::string{name_of(difference.what)} + ", row " + std::to_string(difference.row);
  if (difference.at) {
    char values[160];
    std::snprintf(
      values, sizeof values, ", element %u of %u: %.9g (0x%08x) and %.9g (0x%08x)",
      difference.at->column, difference.at->columns, static_cast<double>(difference.at->a),
      std::bit_cast<std::uint32_t>(difference.at->a), static_cast<double>(difference.at->b),
      std::bit_cast<std::uint32_t>(difference.at->b));
    text += values;
  }
  return text + "; " + std::to_string(difference.differing) + " of "
         + std::to_string(difference.rows) + " rows of this operation differ";
}

} // namespace rollcast
