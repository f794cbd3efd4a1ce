// Goal: merging gives what its definition says, also where ranks, neighbours and repeats compete.
// Method: random tables of merges (fixed seeds) against the definition done naively: scan for the
// pair of lowest rank, merge the leftmost, start over. And a million equal bytes that merge all the
// way up, in bounded time.

#include "engine/tokenizer/bpe.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <random>
#include <string>
#include <utility>

namespace rollcast {
namespace {

/// Tokens "a", "b", "c" and what random merges make of them, by rank.
struct random_merges {
  std::array<token_id, 256> byte_tokens{};
  std::map<std::pair<token_id, token_id>, merge> by_pair;
  merge_table table{60};

  explicit random_merges(std::uint64_t seed) {
    std::mt19937_64 random{seed};
    std::map<std::string, token_id> ids{{"a", 0}, {"b", 1}, {"c", 2}};
    std::vector<std::string> tokens{"a", "b", "c"};
    for (const char c : {'a', 'b', 'c'})
      byte_tokens[static_cast<unsigned char>(c)] = c - 'a';
    for (std::uint32_t rank = 0; rank < 60; ++rank) {
      const auto left = tokens[random() % tokens.size()];
      const auto right = tokens[random() % tokens.size()];
      // Two pairs may make one token, as "a" + "bc" and "ab" + "c" do.
      const auto [made, fresh] =
        ids.try_emplace(left + right, static_cast<token_id>(tokens.size()));
      if (fresh)
        tokens.push_back(left + right);
      const std::pair pair{ids[left], ids[right]};
      if (by_pair.contains(pair))
        continue;
      by_pair[pair] = {rank, made->second};
      table.insert(pair.first, pair.second, {rank, made->second});
    }
  }

  [[nodiscard]] std::vector<token_id> naive(std::string_view piece) const {
    std::vector<token_id> ids;
    for (const char c : piece)
      ids.push_back(byte_tokens[static_cast<unsigned char>(c)]);
    while (true) {
      merge best;
      std::size_t at = 0;
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto found = by_pair.find({ids[i], ids[i + 1]});
        if (found != by_pair.end() && (best.merged < 0 || found->second.rank < best.rank)) {
          best = found->second;
          at = i;
        }
      }
      if (best.merged < 0)
        return ids;
      ids[at] = best.merged;
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
  }
};

TEST(merge_bytes, merges_in_the_order_of_the_definition) {
  merge_scratch scratch;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const random_merges merges{seed};
    std::mt19937_64 random{seed};
    for (int round = 0; round < 20; ++round) {
      std::string piece(random() % 40, 'a');
      for (auto& c : piece)
        c = static_cast<char>('a' + random() % 3);
      std::vector<token_id> ids;
      merge_bytes(piece, merges.byte_tokens, merges.table, scratch, ids);
      ASSERT_EQ(ids, merges.naive(piece)) << "seed " << seed << ", piece " << piece;
    }
  }
}

TEST(merge_bytes, takes_a_million_equal_bytes_all_the_way_up) {
  std::array<token_id, 256> byte_tokens{};
  merge_table table{16};
  for (token_id id = 0; id < 16; ++id) // Token i is 2^i bytes.
    table.insert(id, id, {static_cast<std::uint32_t>(id), id + 1});
  merge_scratch scratch;
  std::vector<token_id> ids;
  const auto start = std::chrono::steady_clock::now();
  merge_bytes(std::string(std::size_t{1} << 20, 'a'), byte_tokens, table, scratch, ids);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds{10});
  EXPECT_EQ(ids, std::vector<token_id>(16, 16));
}

TEST(merge_table, keeps_the_later_of_two_ranks_of_a_pair) {
  merge_table table{2};
  table.insert(1, 2, {5, 9});
  table.insert(1, 2, {7, 9});
  EXPECT_EQ(table.find(1, 2).rank, 7u);
  EXPECT_LT(table.find(2, 1).merged, 0);
}

} // namespace
} // namespace rollcast
