// Goal: a secret that others may read is never used, a broken one never passes for a key, and no
// failure shows what a key file holds.
// Method: files of every mode and content in a fresh directory, read with the loaders.

#include "cluster/security/curve_keys.hpp"
#include "cluster/security/private_file.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace rollcast {
namespace {

void write(const std::filesystem::path& path, const std::string& text, mode_t mode = 0600) {
  std::ofstream{path} << text;
  ::chmod(path.c_str(), mode);
}

TEST(key_file, is_written_private_and_read_back) {
  const temporary_directory where;
  const auto keys = make_keys();
  ASSERT_TRUE(write_keys(where / "a", keys));
  EXPECT_EQ(std::filesystem::status(where / "a.secret").permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  const auto read = load_keys(where / "a.secret");
  ASSERT_TRUE(read) << read.error().detail;
  EXPECT_EQ(*read, keys);
  EXPECT_EQ(load_public_key((where / "a.public").string()).value(), keys.public_key);
  EXPECT_EQ(load_public_key(keys.public_key).value(), keys.public_key);
}

TEST(key_file, is_never_written_over) {
  const temporary_directory where;
  const auto keys = make_keys();
  ASSERT_TRUE(write_keys(where / "a", keys));
  const auto again = write_keys(where / "a", make_keys());
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, errc::io_failed);
  EXPECT_EQ(load_keys(where / "a.secret").value(), keys);
}

TEST(key_file, with_a_loose_mode_is_refused_with_the_command_that_mends_it) {
  const temporary_directory where;
  const auto keys = make_keys();
  for (const mode_t mode : {0640u, 0604u, 0660u, 0644u, 0610u, 0601u, 0602u, 0777u}) {
    write(where / "k", keys.secret_key, mode);
    const auto read = load_keys(where / "k");
    ASSERT_FALSE(read) << mode;
    EXPECT_EQ(read.error().code, errc::bad_config);
    EXPECT_NE(read.error().detail.find("chmod 600 " + (where / "k").string()), std::string::npos);
    EXPECT_NE(read.error().detail.find("0600"), std::string::npos);
    EXPECT_EQ(read.error().detail.find(keys.secret_key), std::string::npos);
  }
  for (const mode_t mode : {0600u, 0400u}) {
    write(where / "k", keys.secret_key, 0600);
    ::chmod((where / "k").c_str(), mode);
    EXPECT_TRUE(load_keys(where / "k")) << mode;
  }
}

TEST(key_file, that_root_lends_to_a_group_of_this_process_is_read) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "only root may lend";
  constexpr gid_t pod = 23'456;
  const temporary_directory where;
  const auto path = where / "k";
  write(path, make_keys().secret_key);
  ASSERT_EQ(::chmod((where / ".").c_str(), 0755), 0);
  const auto group_before = ::getegid();
  const auto read_as_a_user = [&](uid_t owner, mode_t mode) {
    EXPECT_EQ(::chown(path.c_str(), owner, pod), 0);
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    EXPECT_EQ(::setegid(pod), 0);
    EXPECT_EQ(::seteuid(12'345), 0);
    const auto read = load_keys(path);
    EXPECT_EQ(::seteuid(0), 0);
    EXPECT_EQ(::setegid(group_before), 0);
    return read.has_value();
  };
  EXPECT_TRUE(read_as_a_user(0, 0440));
  EXPECT_TRUE(read_as_a_user(0, 0640));
  for (const mode_t mode : {0460u, 0444u, 0450u, 0442u, 0644u})
    EXPECT_FALSE(read_as_a_user(0, mode)) << mode;
  EXPECT_FALSE(read_as_a_user(12'345, 0440)) << "its owner can mend it";
  EXPECT_EQ(::chown(path.c_str(), 0, pod), 0);
  EXPECT_EQ(::chmod(path.c_str(), 0440), 0);
  EXPECT_FALSE(load_keys(path)) << "root needs no group";
}

TEST(key_file, of_another_user_is_refused) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "only root may give files away";
  const temporary_directory where;
  write(where / "k", make_keys().secret_key);
  ASSERT_EQ(::chown((where / "k").c_str(), 12'345, 12'345), 0);
  const auto read = load_keys(where / "k");
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().detail.find("12345"), std::string::npos) << read.error().detail;
}

TEST(trusted_file, is_one_that_nobody_else_may_write) {
  const temporary_directory where;
  const auto path = where / "clients";
  for (const mode_t mode : {0644u, 0600u, 0444u, 0440u, 0755u}) {
    write(path, "text", 0600);
    ::chmod(path.c_str(), mode);
    EXPECT_TRUE(read_trusted(path, "allow list")) << mode;
  }
  for (const mode_t mode : {0664u, 0646u, 0620u, 0602u, 0777u}) {
    ::chmod(path.c_str(), mode);
    const auto read = read_trusted(path, "allow list");
    ASSERT_FALSE(read) << mode;
    EXPECT_EQ(read.error().code, errc::bad_config);
    EXPECT_NE(read.error().detail.find("chmod go-w " + path.string()), std::string::npos);
    EXPECT_TRUE(read_text(path, "allow list")) << "what is no matter of trust";
  }
}

TEST(trusted_file, is_ours_or_roots_also_behind_a_link) {
  const temporary_directory where;
  write(where / "..data", "text", 0644);
  std::filesystem::create_symlink("..data", where / "clients"); // as Kubernetes mounts files
  EXPECT_TRUE(read_trusted(where / "clients", "allow list"));
  if (::geteuid() != 0)
    GTEST_SKIP() << "only root may give files away";
  ASSERT_EQ(::chown((where / "..data").c_str(), 12'345, 12'345), 0);
  const auto read = read_trusted(where / "clients", "allow list");
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().detail.find("belongs to user 12345"), std::string::npos);
  ASSERT_EQ(::chown((where / "..data").c_str(), 0, 12'345), 0);
  ASSERT_EQ(::chmod((where / ".").c_str(), 0755), 0);
  ASSERT_EQ(::seteuid(12'346), 0);
  const bool roots = read_trusted(where / "clients", "allow list").has_value();
  ASSERT_EQ(::seteuid(0), 0);
  EXPECT_TRUE(roots);
}

TEST(key_file, with_anything_but_one_key_is_refused_without_showing_it) {
  const temporary_directory where;
  const auto key = make_keys().secret_key;
  for (const auto& text : {std::string{}, std::string{"# only a comment\n"}, key.substr(1),
                           key + "0", key + "\n" + key, std::string(40, '~'), std::string(40, ' '),
                           key.substr(0, 39) + "\"", std::string(64, 'a') + key}) {
    write(where / "k", text);
    const auto read = load_keys(where / "k");
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, errc::bad_config);
    EXPECT_EQ(read.error().detail.find(key.substr(1, 30)), std::string::npos);
    EXPECT_EQ(read.error().detail.find('\n'), std::string::npos);
  }
  write(where / "k", "# comment\n\n" + key + "\r\n");
  EXPECT_TRUE(load_keys(where / "k"));
}

TEST(key_file, that_is_no_file_is_refused_at_once) {
  const temporary_directory where;
  EXPECT_EQ(load_keys(where / "none").error().code, errc::io_failed);
  EXPECT_FALSE(load_keys(where.path()));
  ASSERT_EQ(::mkfifo((where / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(load_keys(where / "pipe").error().code, errc::bad_config);
}

TEST(key_file, larger_than_any_key_is_not_read) {
  const temporary_directory where;
  write(where / "k", std::string(security_file_bytes_max + 1, 'a'));
  EXPECT_EQ(load_keys(where / "k").error().code, errc::bad_config);
}

} // namespace
} // namespace rollcast
