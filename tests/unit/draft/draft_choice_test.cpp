// Goal: a drafter's model chooses what its target would choose with the same logits, whatever the
// temperature, filters, bans and seed, and its proposals come best first.
// Method: against the target's own sampling kernel, over random rows.

#include "engine/base/prng.hpp"
#include "engine/draft/draft_choice.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

namespace rollcast {

namespace {

std::vector<float> random_row(prng& random, std::size_t vocabulary, float spread) {
  std::vector<float> row(vocabulary);
  for (auto& x : row)
    x = spread * (static_cast<float>(random.next() >> 40) * 0x1p-24f - 0.5f);
  return row;
}

struct aligned_scratch {
  explicit aligned_scratch(std::size_t bytes) : memory(bytes + 64) {}
  std::byte* at() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (64 - address % 64) % 64;
  }
  std::vector<std::byte> memory;
};

TEST(draft_chooser, chooses_the_targets_token_from_the_targets_logits) {
  prng random{3};
  constexpr std::size_t vocabulary = 500;
  aligned_scratch scratch{kernels::sample_scratch_bytes(vocabulary)};
  draft_chooser chooser{{}, draft_noise::shared};
  std::vector<proposed_token> out;
  const std::vector<std::int32_t> banned{7, 80, 499};
  for (int i = 0; i < 400; ++i) {
    const auto row = random_row(random, vocabulary, i % 2 == 0 ? 20.0f : 4.0f);
    kernels::sample_params how;
    how.temperature = i % 5 == 0 ? 0.0f : i % 5 == 1 ? 0.7f : 1.0f;
    how.top_k = i % 3 == 0 ? 20 : 0;
    how.top_p = i % 4 == 0 ? 0.8f : 1.0f;
    how.min_p = i % 7 == 0 ? 0.05f : 0.0f;
    how.seed = random.next();
    how.position = static_cast<std::uint32_t>(i);
    if (i % 6 == 0) {
      how.banned = banned.data();
      how.banned_count = banned.size();
    }
    const auto wanted = kernels::sample_token_cpu(row.data(), vocabulary, how, scratch.at()).token;
    chooser.choose(row, how, 4, out);
    ASSERT_FALSE(out.empty());
    EXPECT_EQ(out[0].token, wanted) << "row " << i;
    float sum = 0;
    for (std::size_t c = 0; c < out.size(); ++c) {
      sum += out[c].probability;
      EXPECT_TRUE(c == 0 || out[c].probability <= out[c - 1].probability);
    }
    EXPECT_GT(out[0].probability, 0.0f);
    EXPECT_LE(sum, 1.0001f);
  }
}

TEST(draft_chooser, keys_its_noise_by_the_targets_token) {
  prng random{4};
  constexpr std::size_t vocabulary = 400;
  std::vector<token_id> every_third;
  for (token_id id = 1; id < static_cast<token_id>(vocabulary); id += 3)
    every_third.push_back(id);
  draft_chooser whole{{}, draft_noise::shared}, part{every_third, draft_noise::shared};
  std::vector<proposed_token> of_whole, of_part;
  for (int i = 0; i < 100; ++i) {
    auto row = random_row(random, vocabulary, 6.0f);
    std::vector<float> short_row;
    for (std::size_t id = 0; id < vocabulary; ++id)
      if (id % 3 == 1)
        short_row.push_back(row[id]);
      else
        row[id] = -std::numeric_limits<float>::infinity();
    kernels::sample_params how;
    how.seed = random.next();
    how.position = 17;
    whole.choose(row, how, 3, of_whole);
    part.choose(short_row, how, 3, of_part);
    ASSERT_EQ(of_whole.size(), of_part.size());
    for (std::size_t c = 0; c < of_whole.size(); ++c)
      EXPECT_EQ(of_whole[c].token, of_part[c].token);
  }
}

TEST(draft_chooser, takes_other_noise_or_none_when_told) {
  prng random{5};
  const auto row = random_row(random, 300, 3.0f);
  draft_chooser shared{{}, draft_noise::shared}, other{{}, draft_noise::independent},
    none{{}, draft_noise::none};
  std::vector<proposed_token> out;
  std::size_t same = 0, likeliest = 0;
  const auto top = static_cast<token_id>(std::max_element(row.begin(), row.end()) - row.begin());
  for (std::uint32_t position = 0; position < 200; ++position) {
    kernels::sample_params how;
    how.seed = 99;
    how.position = position;
    shared.choose(row, how, 1, out);
    const auto first = out[0].token;
    other.choose(row, how, 1, out);
    same += out[0].token == first;
    none.choose(row, how, 1, out);
    likeliest += out[0].token == top;
  }
  EXPECT_LT(same, 40u);
  EXPECT_EQ(likeliest, 200u);
}

TEST(draft_chooser, proposes_nothing_from_a_row_of_no_numbers) {
  draft_chooser chooser{{}, draft_noise::shared};
  std::vector<proposed_token> out{{1, 1}};
  std::vector<float> row(40, std::numeric_limits<float>::quiet_NaN());
  chooser.choose(row, {}, 2, out);
  EXPECT_TRUE(out.empty());
  row[7] = 1.0f;
  chooser.choose(row, {}, 2, out);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].token, 7);
}

TEST(draft_noise, has_the_names_of_the_flag) {
  EXPECT_EQ(find_draft_noise("shared"), draft_noise::shared);
  EXPECT_EQ(find_draft_noise("independent"), draft_noise::independent);
  EXPECT_EQ(find_draft_noise("none"), draft_noise::none);
  EXPECT_FALSE(find_draft_noise("other"));
}

} // namespace

} // namespace rollcast
