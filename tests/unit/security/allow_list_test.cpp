// Goal: a list says exactly who may come in and what each may ask for; a line that cannot be
// understood refuses the whole list, with its number.
// Method: texts, good and broken, through the parser.

#include "cluster/security/allow_list.hpp"
#include "cluster/security/curve_keys.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

TEST(allow_list, has_a_client_for_each_key_with_its_limits) {
  const auto a = make_keys().public_key;
  const auto b = make_keys().public_key;
  const auto list = allow_list::parse(
    "# who\n\n  trainer-1 " + a + "\ntrainer-1\t" + b
      + "  batches=2 operator groups=7 kept=3 responses=9 requests=4 tokens=8 connections=6\r\n",
    "clients", {.batches = 5});
  ASSERT_TRUE(list) << list.error().detail;
  EXPECT_EQ(list->size(), 2u);
  EXPECT_EQ(*list->find(a), (client_entry{"trainer-1", {.batches = 5}}));
  EXPECT_EQ(*list->find(b), (client_entry{"trainer-1", {2, 7, 3, 9, 4, 8, 6}, true}));
  EXPECT_EQ(list->find(make_keys().public_key), nullptr);
  EXPECT_EQ(list->find(""), nullptr);
}

TEST(allow_list, of_no_lines_lets_nobody_in) {
  const auto list = allow_list::parse("", "clients", {});
  ASSERT_TRUE(list);
  EXPECT_EQ(list->size(), 0u);
}

TEST(allow_list, with_a_broken_line_is_refused_with_its_number) {
  const auto key = make_keys().public_key;
  for (const auto& line :
       {std::string{"name"}, "name " + key.substr(1), "na/me " + key, "cluster " + key,
        "name\x1b[1m " + key, std::string(65, 'n') + " " + key, "name " + key + " batches",
        "name " + key + " batches=", "name " + key + " batches=0", "name " + key + " batches=-1",
        "name " + key + " batches=1x", "name " + key + " batches=4294967296",
        "name " + key + " cats=4", "name " + key + " operator=1", "name " + key + " =4"}) {
    const auto list = allow_list::parse("ok " + make_keys().public_key + "\n" + line, "FILE", {});
    ASSERT_FALSE(list) << line;
    EXPECT_EQ(list.error().code, errc::bad_config);
    EXPECT_NE(list.error().detail.find("FILE, line 2: "), std::string::npos) << list.error().detail;
    EXPECT_EQ(list.error().detail.find('\x1b'), std::string::npos);
  }
}

TEST(allow_list, names_a_key_once) {
  const auto key = make_keys().public_key;
  EXPECT_FALSE(allow_list::parse("a " + key + "\nb " + key, "FILE", {}));
}

} // namespace
} // namespace rollcast
