#pragma once

#include <filesystem>

namespace rollcast {

/// A fresh directory under the system's temporary one, removed with the object. Tests of one
/// program run as processes at the same time, so a file with a fixed name belongs in one of these.
class temporary_directory {
public:
  temporary_directory();
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory();

  const std::filesystem::path& path() const noexcept { return path_; }
  std::filesystem::path operator/(const std::filesystem::path& name) const { return path_ / name; }

private:
  std::filesystem::path path_;
};

} // namespace rollcast
