// Goal: a tree becomes paths in the engine's order; what does not fit goes, with all behind it;
// what was chosen is followed through it.
// Method: trees written by hand, and the blocks counted by hand.

#include "engine/step/draft_tree.hpp"
#include "kernels/accept.hpp"

#include <gtest/gtest.h>

#include <string>

namespace rollcast {

namespace {

using draft = std::vector<draft_token>;

const draft_bounds wide{100, 100, 1'000, 20, 16, 10, 0};

/// The nodes as "token<parent", the paths divided by a bar.
std::string arranged(draft nodes, const draft_bounds& bounds, draft_tree& tree) {
  tree.arrange(nodes, bounds);
  std::string out;
  std::size_t path = 0;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (path < tree.paths().size() && tree.paths()[path].begin == i) {
      EXPECT_EQ(tree.paths()[path].parent, nodes[i].parent);
      out += path++ > 0 ? "| " : "";
    }
    out += std::to_string(nodes[i].token) + "<" + std::to_string(nodes[i].parent) + " ";
  }
  EXPECT_EQ(path, tree.paths().size());
  return out;
}

std::string arranged(const draft& nodes, const draft_bounds& bounds = wide) {
  draft_tree tree;
  return arranged(nodes, bounds, tree);
}

TEST(draft_tree, leaves_a_chain_as_it_is) {
  EXPECT_EQ(arranged({{1, -1}, {2, 0}, {3, 1}}), "1<-1 2<0 3<1 ");
  EXPECT_EQ(arranged({}), "");
}

TEST(draft_tree, puts_first_children_in_line_and_every_other_child_behind) {
  // 1 has the children 3 and 4, 2 is a second root, 5 follows 3, 6 follows 2, 7 is beside 5.
  const draft nodes{{1, -1}, {2, -1}, {3, 0}, {4, 0}, {5, 2}, {6, 1}, {7, 2}};
  draft_tree tree;
  EXPECT_EQ(arranged(nodes, wide, tree), "1<-1 3<0 5<1 | 2<-1 6<3 | 4<0 | 7<1 ");
  EXPECT_EQ(tree.paths()[3].depth, 3u);
  EXPECT_EQ(tree.first_spare(), 2u) << "20, 21 and 22 lie in the second block";
  EXPECT_EQ(tree.spares(), 3u);
}

TEST(draft_tree, leaves_out_what_does_not_fit_and_all_that_follows_it) {
  EXPECT_EQ(arranged({{1'000, -1}, {2, 0}, {-1, -1}, {4, 2}, {5, -1}}), "5<-1 ") << "tokens";
  EXPECT_EQ(arranged({{1, 0}, {2, 7}, {3, -2}, {4, -1}, {5, 1}}), "4<-1 ") << "parents";
  auto bounds = wide;
  bounds.depth_max = 2;
  EXPECT_EQ(arranged({{1, -1}, {2, 0}, {3, 1}, {4, 2}, {5, 0}}, bounds), "1<-1 2<0 | 5<0 ");
  bounds = wide;
  bounds.nodes_max = 2;
  EXPECT_EQ(arranged({{1, -1}, {2, -1}, {3, 0}}, bounds), "1<-1 | 2<-1 ");
  bounds.depth_max = 0;
  EXPECT_EQ(arranged({{1, -1}}, bounds), "");
}

TEST(draft_tree, a_branch_without_a_block_is_left_out_and_so_are_its_own) {
  auto bounds = wide;
  bounds.blocks_held = 2; // positions 20 to 31: none to spare
  const draft nodes{{1, -1}, {2, 0}, {3, -1}, {4, 2}, {5, 2}, {6, 1}};
  EXPECT_EQ(arranged(nodes, bounds), "1<-1 2<0 6<1 ");
  bounds.blocks_free = 1;
  EXPECT_EQ(arranged(nodes, bounds), "1<-1 2<0 6<1 | 3<-1 4<3 ");
  bounds.position = 31; // the branch lies in two blocks, as the chain does
  bounds.blocks_held = 3;
  EXPECT_EQ(arranged(nodes, bounds), "1<-1 2<0 6<1 ");
  bounds.blocks_free = 3;
  EXPECT_EQ(arranged(nodes, bounds), "1<-1 2<0 6<1 | 3<-1 4<3 | 5<3 ");
}

/// The path as "node node ...", the root left out.
std::string followed(const std::vector<token_id>& chosen) {
  // Two neutral nodes before it. Node 3 and 4 are equal children of node 1, node 5 is one of 1's
  // too.
  const std::vector<token_id> tokens{0, 0, 0, 1, 2, 3, 3, 1};
  const std::vector<std::uint32_t> parents{9, 9, 9, 0, 1, 1, 1, 0};
  std::vector<kernels::sampled_token> sampled(2, {1, 0, 1});
  for (const auto token : chosen)
    sampled.push_back({token, 0, 1});
  std::vector<std::uint32_t> path(tokens.size(), 77);
  const auto got =
    kernels::accept_draft({2, 6}, tokens.data(), parents.data(), sampled.data(), path.data());
  EXPECT_EQ(path[2], 0u);
  EXPECT_EQ(path[1], 77u);
  std::string out;
  for (std::uint32_t i = 1; i <= got.length; ++i)
    out += std::to_string(path[2 + i]) + " ";
  EXPECT_EQ(got.last, path[2 + got.length]);
  return out;
}

TEST(accept_draft, follows_what_was_chosen_by_the_first_of_equal_children) {
  EXPECT_EQ(followed({1, 3, 0, 0, 0, 0}), "1 3 ");
  EXPECT_EQ(followed({1, 2, 0, 0, 0, 0}), "1 2 ");
  EXPECT_EQ(followed({1, 1, 3, 3, 3, 3}), "1 ");
  EXPECT_EQ(followed({7, 3, 3, 3, 3, 3}), "");
}

} // namespace

} // namespace rollcast
