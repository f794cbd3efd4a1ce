#include "cluster/security/private_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace rollcast {
namespace {

/// A descriptor that is closed at the end of its scope.
class open_file {
public:
  explicit open_file(int descriptor) noexcept : descriptor_(descriptor) {}
  ~open_file() {
    if (descriptor_ >= 0)
      ::close(descriptor_);
  }
  open_file(const open_file&) = delete;
  open_file& operator=(const open_file&) = delete;
  int get() const noexcept { return descriptor_; }

private:
  int descriptor_;
};

std::string octal(unsigned mode) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%04o", mode);
  return text.data();
}

/// Whether this process, which is not root's, is in the group.
bool is_mine(gid_t group) {
  if (group == ::getegid())
    return true;
  std::vector<gid_t> groups(static_cast<std::size_t>(std::max(0, ::getgroups(0, nullptr))));
  const auto got = ::getgroups(static_cast<int>(groups.size()), groups.data());
  groups.resize(static_cast<std::size_t>(std::max(0, got)));
  return std::find(groups.begin(), groups.end(), group) != groups.end();
}

/// A secret that Kubernetes mounts for a user who is not root is root's, and its group, which is
/// made for the pod, may read it.
bool is_lent_by_root(const struct stat& found, unsigned mode) {
  return found.st_uid == 0 && ::geteuid() != 0 && (mode & 077u) == 040u && is_mine(found.st_gid);
}

/// What a file holds, so who else may do what with it.
enum class kind { text, trusted, secret };

result<void> check_owner_and_mode(const struct stat& found, const std::string& name,
                                  const std::string& what, kind is) {
  const unsigned mode = found.st_mode & 07777u;
  if (is == kind::secret && (mode & 077u) != 0 && !is_lent_by_root(found, mode))
    return fail(errc::bad_config, what + " " + name + " has mode " + octal(mode)
                                    + ", so others may use it; wanted is 0600: chmod 600 " + name);
  if (is == kind::trusted && (mode & 022u) != 0)
    return fail(errc::bad_config, what + " " + name + " has mode " + octal(mode)
                                    + ", so others may write it; wanted is 0644: chmod go-w "
                                    + name);
  if (found.st_uid != ::geteuid() && found.st_uid != 0)
    return fail(errc::bad_config, what + " " + name + " belongs to user "
                                    + std::to_string(found.st_uid) + ", wanted is "
                                    + std::to_string(::geteuid()) + " or root: chown "
                                    + std::to_string(::geteuid()) + " " + name);
  return {};
}

result<std::string> read_whole(const std::filesystem::path& path, const std::string& what,
                               kind is) {
  const auto name = path.string();
  // Without waiting: a pipe under the name of a key must not hang us.
  const open_file file{::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat found {};
  if (file.get() < 0 || ::fstat(file.get(), &found) != 0)
    return fail(errc::io_failed, what + " " + name + ": " + std::strerror(errno));
  if (!S_ISREG(found.st_mode))
    return fail(errc::bad_config, what + " " + name + " is no file");
  if (is != kind::text)
    if (const auto ok = check_owner_and_mode(found, name, what, is); !ok)
      return fail(ok);
  std::string text;
  std::array<char, 4096> piece{};
  for (;;) {
    const auto got = ::read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return fail(errc::io_failed, what + " " + name + ": " + std::strerror(errno));
    if (got == 0)
      return text;
    text.append(piece.data(), static_cast<std::size_t>(got));
    if (text.size() > security_file_bytes_max)
      return fail(errc::bad_config, what + " " + name + " has more than "
                                      + std::to_string(security_file_bytes_max) + " bytes");
  }
}

} // namespace

file_stamp stamp_of(const std::filesystem::path& path) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0)
    return {};
  return {found.st_dev, found.st_ino, static_cast<std::uint64_t>(found.st_size),
          std::int64_t{found.st_ctim.tv_sec} * 1'000'000'000 + found.st_ctim.tv_nsec};
}

result<std::string> read_text(const std::filesystem::path& path, const std::string& what) {
  return read_whole(path, what, kind::text);
}

result<std::string> read_trusted(const std::filesystem::path& path, const std::string& what) {
  return read_whole(path, what, kind::trusted);
}

result<std::string> read_secret(const std::filesystem::path& path, const std::string& what) {
  return read_whole(path, what, kind::secret);
}

result<void> write_new(const std::filesystem::path& path, const std::string& text, unsigned mode) {
  const auto name = path.string();
  const open_file file{::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode)};
  if (file.get() < 0)
    return fail(errc::io_failed,
                name + ": " + std::strerror(errno)
                  + (errno == EEXIST ? "; move it away or choose another name" : ""));
  if (::fchmod(file.get(), mode) != 0
      || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())
      || ::fsync(file.get()) != 0)
    return fail(errc::io_failed, name + ": cannot write: " + std::strerror(errno));
  return {};
}

} // namespace rollcast
