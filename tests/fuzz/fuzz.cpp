#include "tests/fuzz/fuzz.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace rollcast::fuzz {
namespace {

constexpr std::size_t detail_bytes_max = 4'096 + 3;

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7f;
}

class scratch_directory {
public:
  scratch_directory() {
    std::error_code failed;
    const bool in_memory = std::filesystem::is_directory("/dev/shm", failed);
    const auto base = in_memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    path_ = base / ("rollcast-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directories(path_);
  }
  ~scratch_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  scratch_directory(const scratch_directory&) = delete;
  scratch_directory& operator=(const scratch_directory&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }

private:
  std::filesystem::path path_;
};

} // namespace

void broken(std::string_view promise) {
  std::fprintf(stderr, "broken promise: %.*s\n", static_cast<int>(promise.size()), promise.data());
  std::abort();
}

void check_line(std::string_view text) {
  if (const auto bad = std::find_if(text.begin(), text.end(), is_control); bad != text.end())
    broken("a line has control character " + std::to_string(*bad) + " at byte "
           + std::to_string(bad - text.begin()) + " of " + std::to_string(text.size()));
}

void check_refusal(const error& why) {
  require(why.code != errc::ok, "a refusal has a code");
  require(!why.detail.empty(), "a refusal says why");
  require(why.detail.size() <= detail_bytes_max, "a refusal is of bounded length");
  check_line(why.detail);
}

const std::filesystem::path& scratch() {
  static const scratch_directory ours;
  return ours.path();
}

std::filesystem::path write_scratch(std::string_view name, std::string_view content) {
  auto path = scratch() / name;
  std::ofstream out{path, std::ios::binary | std::ios::trunc};
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  require(out.good(), "the scratch directory can be written to");
  return path;
}

std::filesystem::path source_file(std::string_view path) {
  return std::filesystem::path{ROLLCAST_SOURCE_DIR} / path;
}

std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span{text});
}

std::string_view input_reader::take(std::size_t bytes) {
  const auto taken = in_.substr(0, bytes);
  in_.remove_prefix(taken.size());
  return taken;
}

std::uint64_t input_reader::number(std::size_t bytes) {
  const auto taken = take(bytes);
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < taken.size(); ++i)
    value |= std::uint64_t{static_cast<unsigned char>(taken[i])} << (8 * i);
  return value;
}

} // namespace rollcast::fuzz
