#pragma once

#include "engine/backend/activation_observer.hpp"
#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/model/config.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast {

/// What dump.json calls the format that engine/dump/README.md describes.
inline constexpr std::string_view dump_format_name = "rollcast-dump-v1";
inline constexpr std::size_t dump_hash_bytes = 16;

/// One operation that a dump has, and the width of its rows.
struct dump_operation {
  operation what{};
  std::uint32_t columns = 0;
  friend bool operator==(const dump_operation&, const dump_operation&) = default;
};

/// One sequence of a dump. Its rows are positions [0, tokens - 1); of those, the rows from
/// `prompt_tokens` - 1 on have logits.
struct dump_sequence {
  std::string name;                ///< For people.
  std::uint32_t tokens = 0;        ///< Of prompt and response.
  std::uint32_t prompt_tokens = 0; ///< In [1, tokens).
  content_hash token_ids;          ///< Of the ids as int32.
  float temperature = 1.0f;
};

/// What dump.json says.
struct dump_header {
  std::string rollcast_version;
  std::string model; ///< Where it came from; for people.
  std::string weights_hash;
  std::string numerics_profile;
  std::string numerics_hash;
  std::uint32_t layers = 0;
  std::vector<dump_operation> operations; ///< Ascending.
  bool values = false;                    ///< Else hashes only.
  std::uint32_t value_rows = 0;           ///< Values of positions below this only; 0: of all.
  std::vector<dump_sequence> sequences;
};

/// One operation of one layer of one sequence, and where its rows lie in the sequence's files.
struct dump_block {
  operation what{};
  std::uint32_t layer = 0;
  std::uint32_t columns = 0;
  std::uint32_t first = 0; ///< Position of its first row; the others follow without gap.
  std::uint32_t rows = 0;
  std::uint32_t value_rows = 0; ///< How many of them have values.
  std::uint64_t hashes_at = 0;  ///< Bytes from the start of the file.
  std::uint64_t values_at = 0;
};

/// Every operation that a model of this shape does, with its width.
std::vector<dump_operation> operations_of(const model_config& config);

/// The blocks of a sequence, in the order of its files: `embedding`, the layers one after another,
/// the operations after them.
std::vector<dump_block> blocks_of(const dump_header& header, const dump_sequence& sequence);

/// Index in `blocks_of` of one operation of one layer; -1 if the dump does not have it.
std::ptrdiff_t block_index(const dump_header& header, operation what, std::uint32_t layer) noexcept;

/// Sizes of a sequence's files.
struct dump_bytes {
  std::uint64_t hashes = 0;
  std::uint64_t values = 0;
};
dump_bytes bytes_of(const dump_header& header, const dump_sequence& sequence);

/// Names of a sequence's files in the directory.
std::string hashes_file(std::size_t sequence);
std::string values_file(std::size_t sequence);

/// Writes a hash as the files hold it: 16 bytes, the digits of `to_string` in order.
void put_hash(const content_hash& hash, std::byte* to) noexcept;

std::string to_json(const dump_header& header);

/// Reads DIRECTORY/dump.json and checks the sizes of the files beside it.
/// @returns `io_failed` for what cannot be read; `bad_config` with one line for what is not a dump,
///          is out of range, or was cut.
result<dump_header> read_dump_header(const std::filesystem::path& directory);

} // namespace rollcast
