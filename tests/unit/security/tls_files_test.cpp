// Goal: only TLS files that belong together are ever shown to the TLS library, and renewed ones
// take their place under the same names.
// Method: certificates of a test CA, in every wrong combination.

#include "cluster/security/tls_files.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/unit/security/few_files.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace rollcast {
namespace {

std::string contents(const std::filesystem::path& path) {
  std::ifstream in{path};
  return {std::istreambuf_iterator<char>{in}, {}};
}

class tls_files_of : public testing::Test {
protected:
  void SetUp() override {
    const std::string command =
      std::string{ROLLCAST_SOURCE_DIR "/tests/support/make_test_ca.sh "} + where_.path().string();
    ASSERT_EQ(std::system(command.c_str()), 0);
  }
  tls_options of(const std::string& certificate, const std::string& key, const std::string& ca) {
    return {where_ / certificate, where_ / key, where_ / ca};
  }
  std::string why_not(const tls_options& options) {
    const auto opened = tls_files::open(options);
    return opened ? "it is good" : opened.error().detail;
  }

  temporary_directory where_;
};

TEST_F(tls_files_of, one_ca_are_taken) {
  const auto files = tls_files::open(of("node.pem", "node.key", "ca.pem"));
  ASSERT_TRUE(files) << files.error().detail;
  EXPECT_EQ(contents((*files)->certificate()), contents(where_ / "node.pem"));
  EXPECT_EQ(contents((*files)->key()), contents(where_ / "node.key"));
  EXPECT_EQ(contents((*files)->ca()), contents(where_ / "ca.pem"));
  EXPECT_FALSE((*files)->changed());
}

TEST_F(tls_files_of, different_makers_are_refused_in_words) {
  EXPECT_NE(why_not(of("node.pem", "renewed.key", "ca.pem")).find("does not belong"),
            std::string::npos);
  EXPECT_NE(why_not(of("stranger.pem", "stranger.key", "ca.pem")).find("is not good by the CA"),
            std::string::npos);
  EXPECT_NE(why_not(of("node.key", "node.key", "ca.pem")).find("holds none"), std::string::npos);
  EXPECT_NE(why_not(of("node.pem", "node.pem", "ca.pem")).find("no key"), std::string::npos);
  EXPECT_NE(why_not(of("node.pem", "node.key", "ca.key")).find("holds no certificate"),
            std::string::npos);
  EXPECT_NE(why_not({where_ / "node.pem", {}, where_ / "ca.pem"}).find("together"),
            std::string::npos);
}

TEST_F(tls_files_of, a_loose_key_are_refused) {
  ::chmod((where_ / "node.key").c_str(), 0640);
  EXPECT_NE(why_not(of("node.pem", "node.key", "ca.pem")).find("chmod 600"), std::string::npos);
}

TEST_F(tls_files_of, others_writing_are_refused) {
  for (const auto* name : {"node.pem", "ca.pem"}) {
    ::chmod((where_ / name).c_str(), 0664);
    EXPECT_NE(why_not(of("node.pem", "node.key", "ca.pem")).find("chmod go-w"), std::string::npos);
    ::chmod((where_ / name).c_str(), 0644);
  }
}

TEST_F(tls_files_of, a_renewal_that_meets_a_passing_error_are_tried_again) {
  const auto files = tls_files::open(of("node.pem", "node.key", "ca.pem"));
  ASSERT_TRUE(files);
  std::filesystem::rename(where_ / "renewed.key", where_ / "node.key");
  std::filesystem::rename(where_ / "renewed.pem", where_ / "node.pem");
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, {});
  };
  const auto before = open_files();
  {
    const few_files two{2}; // of three copies
    const auto said = (*files)->renew();
    EXPECT_FALSE(said.good);
    EXPECT_NE(said.line.find("in memory"), std::string::npos) << said.line;
    EXPECT_TRUE((*files)->changed());
    EXPECT_EQ((*files)->renew().line, "") << "said once";
  }
  EXPECT_EQ(open_files(), before);
  EXPECT_TRUE((*files)->renew().good);
  EXPECT_EQ(open_files(), before);
  EXPECT_FALSE((*files)->changed());
  EXPECT_EQ(contents((*files)->certificate()), contents(where_ / "node.pem"));
}

TEST_F(tls_files_of, a_renewal_take_the_place_of_the_old_ones) {
  const auto files = tls_files::open(of("node.pem", "node.key", "ca.pem"));
  ASSERT_TRUE(files);
  const auto before = contents(where_ / "node.pem");
  std::filesystem::rename(where_ / "renewed.key", where_ / "node.key");
  EXPECT_TRUE((*files)->changed());
  EXPECT_FALSE((*files)->refresh()); // half of it
  EXPECT_EQ(contents((*files)->certificate()), before);
  std::filesystem::rename(where_ / "renewed.pem", where_ / "node.pem");
  EXPECT_TRUE((*files)->changed());
  ASSERT_TRUE((*files)->refresh());
  EXPECT_NE(contents((*files)->certificate()), before);
  EXPECT_EQ(contents((*files)->certificate()), contents(where_ / "node.pem"));
  EXPECT_EQ(contents((*files)->key()), contents(where_ / "node.key"));
}

} // namespace
} // namespace rollcast
