#include "engine/dump/dump_writer.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

namespace rollcast {

namespace {

static_assert(std::endian::native == std::endian::little); // values are written as they lie

tl::unexpected<error> cannot_write(const std::filesystem::path& path) {
  return fail(errc::io_failed, path.string() + ": cannot write: " + std::strerror(errno));
}

void write_at(std::ofstream& file, std::uint64_t at, std::span<const std::byte> bytes) {
  file.seekp(static_cast<std::streamoff>(at));
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

std::string block_text(const dump_block& block) {
  const std::string name{name_of(block.what)};
  return in_layers(block.what) ? "layer " + std::to_string(block.layer) + " " + name : name;
}

} // namespace

result<std::unique_ptr<dump_writer>> dump_writer::create(const std::filesystem::path& directory,
                                                         dump_header header) {
  ROLLCAST_CHECK(header.sequences.empty());
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  bool empty = false;
  if (!failed)
    empty = std::filesystem::is_empty(directory, failed);
  if (failed)
    return fail(errc::io_failed,
                directory.string() + ": cannot make a dump there: " + failed.message());
  if (!empty)
    return fail(errc::bad_config,
                directory.string() + ": is not empty: a dump needs a directory of its own");
  return std::unique_ptr<dump_writer>{new dump_writer{directory, std::move(header)}};
}

result<void> dump_writer::begin(const dump_sequence& sequence) {
  ROLLCAST_CHECK(!hashes_.is_open());
  const std::size_t index = header_.sequences.size();
  header_.sequences.push_back(sequence);
  blocks_ = blocks_of(header_, sequence);
  seen_.assign(blocks_.size(), 0);
  failure_.reset();
  const auto open = [&](std::ofstream& file, const std::string& name) {
    file.clear();
    file.open(directory_ / name, std::ios::binary | std::ios::trunc);
    return file.is_open();
  };
  if (!open(hashes_, hashes_file(index)))
    return cannot_write(directory_ / hashes_file(index));
  if (header_.values && !open(values_, values_file(index)))
    return cannot_write(directory_ / values_file(index));
  return {};
}

void dump_writer::refuse(const std::string& why) {
  if (!failure_)
    failure_ =
      error{errc::bad_config,
            "dump of sequence " + std::to_string(header_.sequences.size() - 1) + ": " + why,
            {}};
}

void dump_writer::see(const observed_rows& rows) {
  const auto index = block_index(header_, rows.what, rows.layer);
  if (index < 0 || failure_ || !hashes_.is_open() || rows.positions.empty())
    return;
  const auto& block = blocks_[static_cast<std::size_t>(index)];
  if (rows.columns != block.columns)
    return refuse(block_text(block) + " has " + std::to_string(rows.columns) + " columns, not "
                  + std::to_string(block.columns));
  auto& seen = seen_[static_cast<std::size_t>(index)];
  for (std::size_t i = 0; i < rows.positions.size(); ++i)
    if (rows.positions[i] != block.first + seen + i || seen + i >= block.rows)
      return refuse(block_text(block) + ": row " + std::to_string(rows.positions[i])
                    + " came when row " + std::to_string(block.first + seen + i) + " of "
                    + std::to_string(block.first + block.rows) + " was due");
  write_hashes(block, seen, rows);
  if (seen < block.value_rows)
    write_values(block, seen, rows);
  seen += static_cast<std::uint32_t>(rows.positions.size());
}

void dump_writer::write_hashes(const dump_block& block, std::uint32_t row,
                               const observed_rows& rows) {
  buffer_.resize(rows.positions.size() * dump_hash_bytes);
  for (std::size_t i = 0; i < rows.positions.size(); ++i)
    put_hash(hash_of(std::span{rows.values + i * rows.stride, rows.columns}),
             buffer_.data() + i * dump_hash_bytes);
  write_at(hashes_, block.hashes_at + row * dump_hash_bytes, buffer_);
}

void dump_writer::write_values(const dump_block& block, std::uint32_t row,
                               const observed_rows& rows) {
  const std::size_t count = std::min<std::size_t>(rows.positions.size(), block.value_rows - row);
  const std::size_t row_bytes = rows.columns * sizeof(float);
  buffer_.resize(count * row_bytes);
  for (std::size_t i = 0; i < count; ++i)
    std::memcpy(buffer_.data() + i * row_bytes, rows.values + i * rows.stride, row_bytes);
  write_at(values_, block.values_at + row * row_bytes, buffer_);
}

result<void> dump_writer::end() {
  const std::size_t index = header_.sequences.size() - 1;
  const auto shut = [&](std::ofstream& file) {
    const bool good = file.good();
    file.close();
    return good && file.good();
  };
  const bool hashes_good = shut(hashes_);
  const bool values_good = !header_.values || shut(values_);
  if (!hashes_good)
    return cannot_write(directory_ / hashes_file(index));
  if (!values_good)
    return cannot_write(directory_ / values_file(index));
  for (std::size_t i = 0; i < blocks_.size(); ++i)
    if (seen_[i] != blocks_[i].rows)
      refuse(block_text(blocks_[i]) + ": " + std::to_string(seen_[i]) + " of "
             + std::to_string(blocks_[i].rows) + " rows came");
  if (failure_)
    return tl::unexpected(*failure_);
  return {};
}

result<void> dump_writer::finish() {
  const auto path = directory_ / "dump.json";
  const auto temporary = directory_ / "dump.json.tmp";
  std::ofstream file{temporary, std::ios::binary | std::ios::trunc};
  file << to_json(header_);
  file.close();
  if (!file.good())
    return cannot_write(temporary);
  std::error_code failed;
  std::filesystem::rename(temporary, path, failed);
  if (failed)
    return fail(errc::io_failed, path.string() + ": cannot write: " + failed.message());
  return {};
}

} // namespace rollcast
