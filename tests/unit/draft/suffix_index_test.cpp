// Goal: a draft is what followed the longest earlier occurrences of a stream's end, with
// probabilities by counts, inside the limits that were asked for, whatever the streams hold.
// Method: small streams whose drafts can be told by hand; random ones against a search of every
// position, which knows no hashes, blocks or chains.

#include "engine/base/prng.hpp"
#include "engine/draft/suffix_index.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace rollcast {
namespace {

using tokens = std::vector<token_id>;

suffix_index index_of(const std::vector<tokens>& streams) {
  suffix_index index;
  for (const auto& s : streams)
    index.append(index.open(), s);
  return index;
}

std::vector<draft_token> draft(const suffix_index& index, std::uint32_t stream,
                               const draft_shape& shape = {}) {
  std::vector<draft_token> out;
  index.speculate(stream, shape, out);
  return out;
}

tokens tokens_of(const std::vector<draft_token>& draft) {
  tokens out;
  for (const auto& node : draft)
    out.push_back(node.token);
  return out;
}

tokens random_tokens(prng& random, std::size_t count, std::uint64_t vocabulary) {
  tokens out(count);
  for (auto& token : out)
    token = static_cast<token_id>(random.below(vocabulary));
  return out;
}

struct occurrence {
  std::uint32_t length = 0;       ///< Of the longest suffix that occurs earlier; at most 64.
  std::set<token_id> followed_by; ///< Behind occurrences of that length.
};

/// Looks at every position of every stream that something follows.
occurrence search(const std::vector<tokens>& streams, std::size_t stream) {
  occurrence out;
  const auto& context = streams[stream];
  for (const auto& s : streams)
    for (std::size_t end = 1; end < s.size(); ++end) {
      std::uint32_t length = 0;
      while (length < 64 && length < end && length < context.size()
             && s[end - 1 - length] == context[context.size() - 1 - length])
        ++length;
      if (length < 2 || length < out.length)
        continue;
      if (length > out.length)
        out = {length, {}};
      out.followed_by.insert(s[end]);
    }
  return out;
}

TEST(suffix_index, drafts_what_a_sibling_wrote) {
  const auto index = index_of({{1, 2, 3, 4, 5, 6, 7}, {9, 2, 3}});
  EXPECT_EQ(tokens_of(draft(index, 1)), (tokens{4, 5, 6, 7}));
}

TEST(suffix_index, drafts_what_the_stream_wrote_itself) {
  const auto index = index_of({{1, 2, 3, 4, 1, 2}});
  EXPECT_EQ(tokens_of(draft(index, 0)), (tokens{3, 4, 1, 2}));
}

TEST(suffix_index, prefers_the_longest_match) {
  const auto index =
    index_of({{8, 5, 6, 7}, {8, 5, 6, 7}, {1, 2, 3, 4, 5, 6, 9}, {1, 2, 3, 4, 5, 6}});
  std::vector<draft_token> out;
  EXPECT_EQ(index.speculate(3, {}, out), 6u);
  ASSERT_FALSE(out.empty());
  EXPECT_EQ(out[0].token, 9);
}

TEST(suffix_index, finds_a_long_match_behind_many_later_short_ones) {
  std::vector<tokens> streams{{1, 2, 3, 4, 5, 6, 9}};
  for (token_id i = 0; i < 40; ++i)
    streams.push_back({100 + i, 5, 6, 7});
  streams.push_back({1, 2, 3, 4, 5, 6});
  const auto out = draft(index_of(streams), 41);
  ASSERT_FALSE(out.empty());
  EXPECT_EQ(out[0].token, 9);
}

TEST(suffix_index, takes_probabilities_from_counts) {
  const auto index = index_of({{1, 2, 3}, {1, 2, 3}, {1, 2, 4}, {1, 2, 3}, {1, 2}});
  const auto out = draft(index, 4);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].token, 3);
  EXPECT_FLOAT_EQ(out[0].probability, 0.75f);
}

TEST(suffix_index, forks_where_siblings_part) {
  const auto index = index_of({{1, 2, 3, 5}, {1, 2, 4, 6}, {1, 2, 3, 5}, {1, 2}});
  const auto out = draft(index, 3, {.tokens_max = 8, .branches_max = 2, .survival_min = 0});
  ASSERT_EQ(tokens_of(out), (tokens{3, 5, 4, 6}));
  EXPECT_EQ(out[0].parent, -1);
  EXPECT_EQ(out[1].parent, 0);
  EXPECT_EQ(out[2].parent, -1);
  EXPECT_EQ(out[3].parent, 2);
}

TEST(suffix_index, stays_within_its_budget_and_survival) {
  const auto index = index_of({{1, 2, 3, 5, 7}, {1, 2, 4, 6, 8}, {1, 2, 3, 5, 9}, {1, 2}});
  EXPECT_TRUE(draft(index, 3, {.tokens_max = 0}).empty());
  EXPECT_EQ(tokens_of(draft(index, 3, {.tokens_max = 2})), (tokens{3, 5}));
  // 3 and 5 survive with 2/3; then 7 and 9 with 1/3 each.
  EXPECT_EQ(draft(index, 3, {.survival_min = 0.5f}).size(), 2u);
  EXPECT_EQ(draft(index, 3, {.survival_min = 0.3f}).size(), 3u);
}

TEST(suffix_index, has_nothing_to_say_without_an_earlier_occurrence) {
  const auto index = index_of({{}, {1}, {1, 2}, {5, 1, 2}});
  for (std::uint32_t stream = 0; stream < 4; ++stream)
    EXPECT_TRUE(draft(index, stream).empty()) << stream;
}

TEST(suffix_index, does_not_care_how_it_was_appended) {
  prng random{3};
  const std::vector<tokens> said{random_tokens(random, 700, 4), random_tokens(random, 700, 4)};
  const auto whole = index_of(said);
  suffix_index pieces;
  for (const auto& s : said) {
    const auto stream = pieces.open();
    for (std::size_t at = 0; at < s.size();) {
      const auto n = std::min<std::size_t>(random.below(9), s.size() - at);
      pieces.append(stream, {s.data() + at, n});
      at += n;
    }
  }
  for (std::uint32_t stream = 0; stream < 2; ++stream) {
    EXPECT_EQ(pieces.size(stream), whole.size(stream));
    EXPECT_EQ(tokens_of(draft(pieces, stream)), tokens_of(draft(whole, stream)));
  }
  EXPECT_EQ(pieces.tokens(), 1400u);
}

TEST(suffix_index, holds_a_token_in_64_bytes) {
  prng random{4};
  // 8 * 4097 tokens: the tables of heads have just doubled, which is when they are emptiest.
  for (const std::size_t length : {4096, 4097, 6000}) {
    suffix_index index;
    for (int stream = 0; stream < 8; ++stream)
      index.append(index.open(), random_tokens(random, length, 32'000));
    EXPECT_LE(index.bytes(), 64 * index.tokens()) << length;
  }
}

/// A chain of up to 8: the majority of all occurrences of the longest suffix, token by token.
tokens search_chain(const std::vector<tokens>& streams, std::size_t stream) {
  const auto longest = search(streams, stream).length;
  const auto& context = streams[stream];
  std::vector<std::pair<const tokens*, std::size_t>> alive;
  for (const auto& s : streams)
    for (std::size_t end = longest; longest > 0 && end < s.size(); ++end)
      if (std::equal(context.end() - longest, context.end(), s.data() + end - longest))
        alive.push_back({&s, end});
  tokens out;
  while (out.size() < 8) {
    std::map<token_id, int> votes;
    for (const auto& [s, at] : alive)
      ++votes[(*s)[at]];
    if (votes.empty())
      break;
    out.push_back(std::max_element(votes.begin(), votes.end(), [](const auto& a, const auto& b) {
                    return a.second < b.second;
                  })->first);
    std::erase_if(alive, [&](auto& x) { return (*x.first)[x.second] != out.back(); });
    for (auto& x : alive)
      ++x.second;
    std::erase_if(alive, [](const auto& x) { return x.second == x.first->size(); });
  }
  return out;
}

TEST(suffix_index, is_right_about_as_often_as_a_search_of_every_position) {
  prng random{5};
  std::vector<tokens> phrases;
  for (int i = 0; i < 24; ++i)
    phrases.push_back(random_tokens(random, 3 + random.below(12), 64));
  std::vector<tokens> said(3);
  for (auto& s : said)
    while (s.size() < 300)
      for (const auto token : phrases[random.below(phrases.size())])
        s.push_back(random.chance(5) ? static_cast<token_id>(random.below(64)) : token);
  std::vector<tokens> seen{said[0], said[1], {}};
  auto index = index_of(seen);
  const auto right = [&](const tokens& draft, std::size_t at) {
    std::size_t n = 0;
    while (n < draft.size() && at + n < said[2].size() && draft[n] == said[2][at + n])
      ++n;
    return n;
  };
  std::size_t found = 0;
  std::size_t there = 0;
  for (std::size_t at = 0; at < said[2].size(); ++at) {
    found += right(tokens_of(draft(index, 2, {.survival_min = 0})), at);
    there += right(search_chain(seen, 2), at);
    index.append(2, {&said[2][at], 1});
    seen[2].push_back(said[2][at]);
  }
  RecordProperty("found", static_cast<int>(found));
  RecordProperty("there", static_cast<int>(there));
  EXPECT_GT(there, said[2].size()) << "nothing to find";
  EXPECT_GE(100 * found, 95 * there) << found << " tokens of " << there;
}

TEST(suffix_index, finds_what_a_search_of_every_position_finds) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    prng random{seed};
    const std::uint64_t vocabulary = seed % 2 == 0 ? 16 : 256;
    std::vector<tokens> said(1 + random.below(5));
    suffix_index index;
    for (auto& s : said) {
      s = random_tokens(random, random.below(120), vocabulary);
      // A piece of a sibling, so that long matches occur, and end in the middle of something.
      const auto& other = said[random.below(said.size())];
      const auto n = other.size() / 2;
      s.insert(s.end(), other.begin(), other.begin() + static_cast<std::ptrdiff_t>(n));
      index.append(index.open(), s);
    }
    for (std::uint32_t stream = 0; stream < said.size(); ++stream) {
      const auto expected = search(said, stream);
      std::vector<draft_token> out;
      EXPECT_EQ(index.speculate(stream, {.survival_min = 0}, out), expected.length);
      EXPECT_EQ(out.empty(), expected.followed_by.empty());
      for (const auto& node : out)
        EXPECT_TRUE(node.probability > 0 && node.probability <= 1);
    }
  }
}

} // namespace
} // namespace rollcast
