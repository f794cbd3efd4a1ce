#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

/// What the fuzz targets share. A target is one file that defines `LLVMFuzzerTestOneInput`; what it
/// finds wrong ends the process, which libFuzzer and replay.cpp both report with the input.
namespace rollcast::fuzz {

/// Says what promise was broken and ends the process.
[[noreturn]] void broken(std::string_view promise);

inline void require(bool holds, std::string_view promise) {
  if (!holds)
    broken(promise);
}

/// A refusal has a code, and its detail is one line that a log can hold: not empty, without control
/// characters, and bounded whatever the input was.
void check_refusal(const error& why);

/// Checks a text that is part of a line.
void check_line(std::string_view text);

/// A directory of this process in memory, for readers that want a path. Removed at its exit.
const std::filesystem::path& scratch();

/// Writes one file there, over what it was, and returns its path.
std::filesystem::path write_scratch(std::string_view name, std::string_view content);

/// A fixture or an example of the repository.
std::filesystem::path source_file(std::string_view path);

std::string_view text_of(const std::uint8_t* data, std::size_t size);
std::span<const std::byte> bytes_of(std::string_view text);

/// Takes an input apart from its front; past the end everything is 0.
class input_reader {
public:
  explicit input_reader(std::string_view in) : in_(in) {}

  bool empty() const noexcept { return in_.empty(); }
  std::uint64_t number(std::size_t bytes); ///< Little-endian.
  std::string_view take(std::size_t bytes);
  std::string_view rest() const noexcept { return in_; }

private:
  std::string_view in_;
};

} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
