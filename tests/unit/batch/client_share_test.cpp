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

TEST_F(client_share, counts_tokens_of_prompts_and_of_results_that_wait) {
  auto& batch = submit("a", "x", 5); // 10 tokens of prompts; the next one has 4
  submit("b", "y", 50);
  EXPECT_EQ(refusal("a", {.tokens = 14}), "");
  EXPECT_NE(refusal("a", {.tokens = 13})
              .find("10 tokens of prompts and of results that it has not acknowledged and asks for "
                    "4 more, its limit is 13"),
            std::string::npos);
  const auto at = book_.locate({batch.first_response});
  ASSERT_TRUE(book_.append(at, 0, std::vector<token_id>{7, 8, 9}, std::vector<float>(3, -1.f),
                           std::vector<float>(3, 1.f)));
  EXPECT_NE(refusal("a", {.tokens = 16}), "");
  EXPECT_EQ(refusal("a", {.tokens = 17}), "");
  (void)book_.cancel(batch, 2);
  book_.attach(batch, "peer", 0);
  (void)book_.deliveries(batch);
  ASSERT_TRUE(book_.acknowledge(batch, batch.size));
  EXPECT_EQ(refusal("a", {.tokens = 14}), "") << "results are acknowledged, prompts are kept";
  EXPECT_NE(refusal("a", {.tokens = 13}), "");
  ASSERT_TRUE(book_.acknowledge(batch, batch.last_sequence()));
  EXPECT_EQ(refusal("a", {.tokens = 4}), "");
}

TEST_F(client_share, counts_names_and_stop_lists_of_groups_as_tokens) {
  auto spec = batch_of("x", 1, 1);
  spec.groups[0].id = std::string(40, 'i');
  spec.groups[0].sampling = wire::sampling_params{.stop_token_ids = {1, 2, 3}};
  EXPECT_EQ(prompt_tokens_of(spec), 2u + 10 + 3);
}

TEST_F(client_share, is_not_the_only_bound_on_tokens) {
  batch_book book{{.tokens = 100}};
  ASSERT_TRUE(book.submit(batch_of("x", 30, 1), 1));
  const auto refused = book.submit(batch_of("y", 21, 1), 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::queue_full);
  EXPECT_NE(refused.error().detail.find("42 tokens of prompts, 60 of prompts and 0 of"),
            std::string::npos)
    << refused.error().detail;
  EXPECT_TRUE(book.submit(batch_of("z", 20, 1), 1));
}

} // namespace
} // namespace rollcast
