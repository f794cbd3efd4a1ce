// Goal: the calls of NCCL that are used do what they are used for, on one device: a group of one
// forms, gets its own bytes back, broadcasts, and is aborted.
// Method: one rank: over the emulator with a pretended library, and on a GPU (tests/gpu) with the
// machine's own; skipped, with a reason, where there is none.

#include "engine/collective/nccl.hpp"
#include "engine/collective/nccl_calls.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace rollcast {
namespace {

#ifdef ROLLCAST_PRETEND_NCCL
const std::string library = ROLLCAST_PRETEND_NCCL;
#else
const std::string library;
#endif

/// Polls until nothing runs, for a minute at most. @returns whether that came.
bool ends(communicator& group) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes{1};
  while (std::chrono::steady_clock::now() < until) {
    const auto over = group.poll();
    EXPECT_TRUE(over) << over.error().detail;
    if (!over || *over)
      return over.has_value();
    std::this_thread::sleep_for(std::chrono::microseconds{100});
  }
  return false;
}

TEST(nccl_of_one, forms_gets_its_own_bytes_back_and_broadcasts) {
  std::string why_not;
  if (!nccl::calls::find(library, why_not)) {
    if (why_not.starts_with("no "))
      GTEST_SKIP() << why_not;
    FAIL() << why_not;
  }
  keep_nccl_from_blocking();
  auto maker = open_nccl(0, {.transfers_max = 4, .piece_bytes = 1 << 16, .library = library});
  ASSERT_TRUE(maker) << maker.error().detail;
  EXPECT_TRUE((*maker)->device().starts_with("GPU-")) << (*maker)->device();
  const auto id = (*maker)->new_id();
  ASSERT_TRUE(id) << id.error().detail;
  auto group = (*maker)->form(*id, 0, 1);
  ASSERT_TRUE(group) << group.error().detail;
  ASSERT_TRUE(ends(**group)) << "it does not form";

  std::vector<std::byte> out(200'001), in(out.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<std::byte>(i * 131 >> 4);
  ASSERT_TRUE((*group)->exchange({{0, out, {}}, {0, {}, in}}));
  ASSERT_TRUE(ends(**group));
  EXPECT_EQ(in, out);
  ASSERT_TRUE((*group)->broadcast(0, in));
  ASSERT_TRUE(ends(**group));
  EXPECT_EQ(in, out) << "the root keeps what it has";
  (*group)->abort();
  EXPECT_FALSE((*group)->poll());
}

} // namespace
} // namespace rollcast
