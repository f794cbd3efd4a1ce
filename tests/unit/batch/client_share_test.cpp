// Goal: one client's batches leave room for everybody else's.
// Method: a book with batches of two clients; one asks for more than its share in each way.

#include "cluster/batch/client_share.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

wire::submit_batch batch_of(const std::string& key, std::size_t groups, std::uint32_t size) {
  wire::submit_batch batch;
  batch.batch_key = key;
  for (std::size_t g = 0; g < groups; ++g) {
    auto& group = batch.groups.emplace_back();
    group.prompt_token_ids = {1, 2};
    group.group_size = size;
  }
  return batch;
}

class client_share : public testing::Test {
protected:
  batch_record& submit(const std::string& client, const std::string& key, std::size_t groups = 2,
                       std::uint32_t size = 3) {
    auto& made = **book_.submit(batch_of(key, groups, size), 1);
    made.client = client;
    return made;
  }
  std::string refusal(const std::string& client, const client_limits& limits,
                      std::size_t groups = 2) {
    const auto ok = check_share(book_, client, limits, batch_of("more", groups, 3));
    EXPECT_TRUE(ok || ok.error().code == errc::queue_full);
    return ok ? "" : ok.error().detail;
  }

  batch_book book_{batch_limits{}};
};

TEST_F(client_share, of_one_is_not_used_up_by_another) {
  for (int i = 0; i < 4; ++i)
    submit("a", "a" + std::to_string(i));
  submit("b", "b");
  EXPECT_NE(refusal("a", {.batches = 4}).find("4 unfinished batches"), std::string::npos);
  EXPECT_EQ(refusal("b", {.batches = 4}), "");
  EXPECT_EQ(refusal("c", {.batches = 1}), "");
}

TEST_F(client_share, counts_unfinished_groups) {
  submit("a", "x", 5);
  EXPECT_EQ(refusal("a", {.groups = 7}, 2), "");
  EXPECT_NE(refusal("a", {.groups = 7}, 3).find("5 unfinished groups"), std::string::npos);
}

TEST_F(client_share, counts_what_is_not_acknowledged_when_it_has_ended) {
  auto& ended = submit("a", "x");
  (void)book_.cancel(ended, 2);
  EXPECT_EQ(refusal("a", {.batches = 1}), "");
  EXPECT_NE(refusal("a", {.kept = 1}), "");
  EXPECT_NE(refusal("a", {.responses = 11}).find("6 responses"), std::string::npos);
  EXPECT_EQ(refusal("a", {.responses = 12}), "");
  book_.attach(ended, "peer", 0);
  (void)book_.deliveries(ended);
  ASSERT_TRUE(book_.acknowledge(ended, ended.last_sequence()));
  EXPECT_EQ(refusal("a", {.kept = 1, .responses = 6}), "");
}

} // namespace
} // namespace rollcast
