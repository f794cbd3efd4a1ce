// Goal: the accepted path of a draft tree is the one that sampling would have taken, on the device
// and on the host.
// Method: random trees against a walk from the root; trees of no and of one node.
#include "kernels/cuda/accept.hpp"
#include "tests/unit/cuda/device.hpp"
#include "tests/unit/kernels/pattern.hpp"

namespace rollcast::test {
namespace {

struct forest {
  std::vector<kernels::tree_span> trees;
  std::vector<std::int32_t> tokens;
  std::vector<std::uint32_t> parents;
  std::vector<kernels::sampled_token> sampled;
};

forest grow(std::uint64_t seed) {
  prng random{seed};
  forest all;
  for (int i = 0; i < 200; ++i) {
    const auto begin = static_cast<std::uint32_t>(all.tokens.size());
    const auto nodes = static_cast<std::uint32_t>(random.below(12));
    all.trees.push_back({begin, nodes});
    for (std::uint32_t node = 0; node < nodes; ++node) {
      all.parents.push_back(node == 0 ? 0xffffffffu
                                      : static_cast<std::uint32_t>(random.below(node)));
      all.tokens.push_back(static_cast<std::int32_t>(random.below(3)));
      all.sampled.push_back({static_cast<std::int32_t>(random.below(3)), 0.0f, 1.0f});
    }
  }
  return all;
}

TEST(cuda_accept, takes_the_path_that_sampling_would) {
  const forest all = grow(4);
  const on_device<kernels::tree_span> trees{all.trees};
  const on_device<std::int32_t> tokens{all.tokens};
  const on_device<std::uint32_t> parents{all.parents}, path{all.tokens.size()};
  const on_device<kernels::sampled_token> sampled{all.sampled};
  const on_device<kernels::accepted_path> out{all.trees.size()};
  must(cuda::accept_drafts({trees.data(), all.trees.size(), tokens.data(), parents.data(),
                            sampled.data(), out.data(), path.data()},
                           nullptr));
  const auto got = out.values();
  const auto paths = path.values();
  std::size_t longest = 0;
  for (std::size_t i = 0; i < all.trees.size(); ++i) {
    const auto [begin, nodes] = all.trees[i];
    std::uint32_t at = 0, length = 0;
    for (bool found = nodes > 0; found;) {
      ASSERT_EQ(paths[begin + length], at);
      found = false;
      for (std::uint32_t child = 1; child < nodes && !found; ++child)
        if (all.parents[begin + child] == at
            && all.tokens[begin + child] == all.sampled[begin + at].token) {
          at = child;
          ++length;
          found = true;
        }
    }
    EXPECT_EQ(got[i].length, length) << i;
    EXPECT_EQ(got[i].last, at) << i;
    std::vector<std::uint32_t> on_host(all.tokens.size());
    const auto path = kernels::accept_draft(all.trees[i], all.tokens.data(), all.parents.data(),
                                            all.sampled.data(), on_host.data());
    EXPECT_EQ(path.length, length) << i;
    EXPECT_EQ(path.last, at) << i;
    for (std::uint32_t node = 0; node < (nodes > 0 ? length + 1 : 0); ++node)
      EXPECT_EQ(on_host[begin + node], paths[begin + node]) << i;
    longest = std::max<std::size_t>(longest, length);
  }
  EXPECT_GE(longest, 3u) << "the trees test something";
}

} // namespace
} // namespace rollcast::test
