// Goal: keys and lists change with their files, without a restart; a broken file changes nothing
// and is said once; a replaced key is good for its grace and no longer.
// Method: a policy over files that are rewritten, and times handed to `refresh`.

#include "cluster/security/curve_policy.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/unit/security/few_files.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

namespace rollcast {
namespace {

using std::chrono::seconds;

class curve_policy_files : public testing::Test {
protected:
  /// Puts a new file in the place of one, as an editor or `mv` does.
  void put(const std::string& name, const std::string& text) {
    const auto fresh = where_ / (name + ".new");
    std::ofstream{fresh} << text;
    ::chmod(fresh.c_str(), 0600);
    std::filesystem::rename(fresh, where_ / name);
  }
  std::shared_ptr<curve_policy> open(const key_pair& keys, const std::string& list) {
    put("secret", keys.secret_key);
    put("clients", list);
    auto made =
      curve_policy::open({where_ / "secret", where_ / "clients", {}, std::chrono::minutes{5}});
    EXPECT_TRUE(made) << made.error().detail;
    return *made;
  }
  static curve_policy::clock::time_point now() { return curve_policy::clock::now(); }

  temporary_directory where_;
};

TEST_F(curve_policy_files, admit_who_is_listed_and_who_holds_the_secret) {
  const auto own = make_keys();
  const auto client = make_keys();
  const auto policy = open(own, "trainer " + client.public_key + " batches=2");
  EXPECT_EQ(policy->current(), own);
  EXPECT_EQ(policy->admit(client.public_key), (client_entry{"trainer", {.batches = 2}}));
  EXPECT_EQ(policy->admit(own.public_key).value().name, "cluster");
  EXPECT_EQ(policy->admit(make_keys().public_key), std::nullopt);
}

TEST_F(curve_policy_files, that_list_others_admit_others) {
  const auto a = make_keys();
  const auto b = make_keys();
  const auto policy = open(make_keys(), "a " + a.public_key);
  const auto before = policy->list_version();
  policy->refresh(now());
  EXPECT_EQ(policy->list_version(), before);
  put("clients", "b " + b.public_key);
  policy->refresh(now());
  EXPECT_GT(policy->list_version(), before);
  EXPECT_FALSE(policy->admit(a.public_key));
  EXPECT_TRUE(policy->admit(b.public_key));
}

TEST_F(curve_policy_files, that_are_broken_change_nothing_and_are_said_once) {
  const auto own = make_keys();
  const auto client = make_keys();
  const auto policy = open(own, "a " + client.public_key);
  put("clients", "a nonsense");
  put("secret", "nonsense");
  policy->refresh(now());
  EXPECT_NE(policy->complaint(), "");
  policy->refresh(now());
  EXPECT_EQ(policy->complaint(), "");
  EXPECT_EQ(policy->current(), own);
  EXPECT_TRUE(policy->admit(client.public_key));
  std::filesystem::remove(where_ / "clients");
  policy->refresh(now());
  EXPECT_NE(policy->complaint(), "");
  EXPECT_TRUE(policy->admit(client.public_key));
}

TEST_F(curve_policy_files, that_could_not_be_read_for_a_while_are_tried_again) {
  const auto policy = open(make_keys(), "");
  const auto fresh = make_keys();
  const auto client = make_keys();
  put("secret", fresh.secret_key);
  put("clients", "a " + client.public_key);
  {
    const few_files none{0};
    policy->refresh(now());
    EXPECT_NE(policy->complaint(), "");
    policy->refresh(now());
    EXPECT_EQ(policy->complaint(), "") << "said once";
  }
  policy->refresh(now());
  EXPECT_EQ(policy->current(), fresh);
  EXPECT_TRUE(policy->admit(client.public_key));
}

TEST_F(curve_policy_files, that_others_may_write_change_nothing) {
  const auto client = make_keys();
  const auto policy = open(make_keys(), "a " + client.public_key);
  put("clients", "b " + make_keys().public_key);
  ::chmod((where_ / "clients").c_str(), 0666);
  policy->refresh(now());
  EXPECT_NE(policy->complaint().find("chmod go-w"), std::string::npos);
  EXPECT_TRUE(policy->admit(client.public_key));
}

TEST_F(curve_policy_files, that_become_loose_are_complained_about) {
  const auto policy = open(make_keys(), "");
  ::chmod((where_ / "secret").c_str(), 0644);
  policy->refresh(now());
  EXPECT_NE(policy->complaint().find("chmod 600"), std::string::npos);
}

TEST_F(curve_policy_files, keep_a_replaced_key_for_its_grace) {
  const auto first = make_keys();
  const auto second = make_keys();
  const auto policy = open(first, "");
  const auto version = policy->keys_version();
  put("secret", second.secret_key);
  policy->refresh(now());
  EXPECT_GT(policy->keys_version(), version);
  EXPECT_EQ(policy->valid(), (std::vector{second, first}));
  EXPECT_TRUE(policy->admit(first.public_key));
  policy->refresh(now() + seconds{301});
  EXPECT_EQ(policy->valid(), std::vector{second});
  EXPECT_FALSE(policy->admit(first.public_key));
  EXPECT_GT(policy->keys_version(), version + 1);
}

TEST_F(curve_policy_files, changed_twice_keep_the_last_two_keys) {
  const auto first = make_keys();
  const auto second = make_keys();
  const auto third = make_keys();
  const auto policy = open(first, "");
  for (const auto& keys : {second, third}) {
    put("secret", keys.secret_key);
    policy->refresh(now());
  }
  EXPECT_EQ(policy->valid(), (std::vector{third, second}));
  put("secret", second.secret_key); // back
  policy->refresh(now());
  EXPECT_EQ(policy->valid(), (std::vector{second, third}));
}

} // namespace
} // namespace rollcast
