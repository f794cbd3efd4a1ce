#include "cli/output_dir.hpp"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <tuple>
#include <utility>

namespace rollcast::cli {

namespace {

tl::unexpected<error> cannot(const char* what, const std::filesystem::path& path, int reason) {
  return fail(errc::io_failed,
              std::string{"cannot "} + what + " " + path.string() + ": " + std::strerror(reason));
}

/// Writes all of `text` or says why not. @returns 0 or an errno.
int write_all(int fd, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n == 0 ? ENOSPC : errno;
    done += static_cast<std::size_t>(n);
  }
  return 0;
}

/// Has the names in a directory on disk; their contents are another matter.
result<void> sync_directory(const std::filesystem::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return cannot("open", directory, errno);
  const int reason = ::fsync(fd) == 0 || errno == EINVAL ? 0 : errno; // not every one can
  ::close(fd);
  return reason == 0 ? result<void>{} : cannot("write", directory, reason);
}

/// Writes a whole file under a temporary name and renames it, so that no reader sees half of it.
result<void> replace_file(const std::filesystem::path& path, const std::string& text) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0)
    return cannot("create", temporary, errno);
  int reason = write_all(fd, text);
  if (reason == 0 && ::fsync(fd) != 0)
    reason = errno;
  if (::close(fd) != 0 && reason == 0)
    reason = errno;
  if (reason == 0 && ::rename(temporary.c_str(), path.c_str()) != 0)
    reason = errno;
  if (reason == 0)
    return sync_directory(path.parent_path());
  ::unlink(temporary.c_str());
  return cannot("write", path, reason);
}

} // namespace

result<output_dir> output_dir::open(const std::filesystem::path& directory) {
  std::error_code made;
  std::filesystem::create_directories(directory, made);
  if (made)
    return cannot("make directory", directory, made.value());
  output_dir out{directory};
  if (auto ok = out.open_partial(); !ok)
    return fail(ok);
  return out;
}

/// Opens the partial file and locks it, so that two runs cannot share a directory.
result<void> output_dir::open_partial() {
  partial_ = ::open(partial_file().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (partial_ < 0)
    return cannot("create", partial_file(), errno);
  if (::flock(partial_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return fail(errc::io_failed,
                partial_file().string() + " is being written by another run: give another --out");
  return sync_directory(directory_);
}

output_dir::output_dir(output_dir&& other) noexcept
  : directory_(std::move(other.directory_)), partial_(std::exchange(other.partial_, -1)) {}

output_dir::~output_dir() {
  if (partial_ >= 0)
    ::close(partial_);
}

/// Puts a partial file that belongs to another batch out of the way: it may hold the only copy of
/// what was acknowledged. Opens a new one.
result<void> output_dir::set_aside() {
  for (int number = 1;; ++number) {
    const auto kept = directory_ / ("responses.kept-" + std::to_string(number) + ".jsonl");
    std::error_code failed;
    if (std::filesystem::exists(kept, failed))
      continue;
    std::filesystem::rename(partial_file(), kept, failed);
    if (failed)
      return cannot("rename", partial_file(), failed.value());
    spdlog::warn("{} held responses of an earlier batch; they are in {}", partial_file().string(),
                 kept.string());
    break;
  }
  ::close(std::exchange(partial_, -1));
  return open_partial();
}

result<std::vector<response_record>> output_dir::take_up(std::uint64_t count) {
  struct stat there = {};
  if (count == 0 && ::fstat(partial_, &there) == 0 && S_ISREG(there.st_mode) && there.st_size > 0)
    if (auto ok = set_aside(); !ok)
      return fail(ok);
  std::vector<response_record> records;
  off_t bytes = 0;
  std::ifstream in{partial_file()};
  std::string line;
  while (records.size() < count && std::getline(in, line) && !in.eof()) { // eof: cut off
    const std::string where = partial_file().string() + ":" + std::to_string(records.size() + 1);
    auto record = from_line(line, where);
    if (!record)
      return fail(record);
    records.push_back(std::move(*record));
    bytes += static_cast<off_t>(line.size() + 1);
  }
  if (records.size() < count)
    return fail(errc::io_failed, std::to_string(count)
                                   + " responses of this batch were acknowledged by an earlier "
                                   + "run, and " + partial_file().string() + " holds "
                                   + std::to_string(records.size())
                                   + ": give the --out of that run, or another --batch-key");
  if (::ftruncate(partial_, bytes) != 0 && errno != EINVAL) // a device has no length
    return cannot("shorten", partial_file(), errno);
  return records;
}

result<void> output_dir::keep(const response_record& record) {
  if (const int reason = write_all(partial_, to_line(record) + "\n"); reason != 0)
    return cannot("write", partial_file(), reason);
  return {};
}

result<void> output_dir::sync() {
  if (::fdatasync(partial_) != 0 && errno != EINVAL
      && errno != EROFS) // a pipe or device has no disk
    return cannot("write", partial_file(), errno);
  return {};
}

result<void> output_dir::finish(std::vector<response_record> records, const std::string& summary) {
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) {
    return std::tie(a.group, a.index) < std::tie(b.group, b.index);
  });
  std::string lines;
  for (const auto& record : records)
    lines += to_line(record) + "\n";
  if (auto ok = replace_file(responses_file(), lines); !ok)
    return fail(ok.error().code, ok.error().detail + "; all " + std::to_string(records.size())
                                   + " responses are in " + partial_file().string());
  if (auto ok = replace_file(directory_ / "summary.json", summary + "\n"); !ok)
    return ok;
  ::close(std::exchange(partial_, -1));
  std::error_code ignored;
  std::filesystem::remove(partial_file(), ignored);
  return {};
}

} // namespace rollcast::cli
