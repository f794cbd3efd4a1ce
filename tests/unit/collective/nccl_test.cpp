// Goal: what is asked of a communicator arrives through NCCL's calls: piece by piece, both ways at
// once, never blocking; an error elsewhere, an abort and a library that is not there or too old are
// said; the numbers that are used without nccl.h are those of nccl.h.
// Method: a pretended library (tests/support/pretend_nccl.cpp) over the emulator, two or three
// ranks of one process, polled in turn. NCCL itself is loaded where it is, no more.

#include "cluster/collective/member.hpp"
#include "engine/collective/nccl.hpp"
#include "engine/collective/nccl_calls.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>

#ifdef ROLLCAST_NCCL_HEADER
#include <nccl.h>
static_assert(rollcast::nccl::success == ncclSuccess);
static_assert(rollcast::nccl::in_progress == ncclInProgress);
static_assert(rollcast::nccl::uint8 == ncclUint8);
static_assert(sizeof(rollcast::nccl::unique_id) == sizeof(ncclUniqueId));
static_assert(offsetof(rollcast::nccl::config, size) == offsetof(ncclConfig_t, size));
static_assert(offsetof(rollcast::nccl::config, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(rollcast::nccl::config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(rollcast::nccl::config, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(rollcast::nccl::config{}.magic
              == static_cast<unsigned>(0xcafebeef)); // NCCL_CONFIG_INITIALIZER's
#endif

namespace rollcast {
namespace {

const std::string pretended = ROLLCAST_PRETEND_NCCL;

struct nccl_test : testing::Test {
  nccl_test() { keep_nccl_from_blocking(); }
  ~nccl_test() override {
    ranks.clear();
    set("stuck", 0);
    set("refuse", 0);
    set("version", 22809);
    set("file blocks", 0);
    EXPECT_EQ(call<int (*)()>("pretend_nccl_misuses")(), 0) << "calls that NCCL would have refused";
    ::unsetenv("NCCL_COMM_BLOCKING");
  }
  template <class Call>
  static Call call(const char* name) {
    static void* const library = ::dlopen(pretended.c_str(), RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<Call>(::dlsym(library, name));
  }
  static void set(const char* what, int value) {
    call<void (*)(const char*, int)>("pretend_nccl_set")(what, value);
  }

  void begin(std::uint32_t size) {
    std::string id;
    for (std::uint32_t rank = 0; rank < size; ++rank) {
      auto maker = open_nccl(0, {.transfers_max = 4, .piece_bytes = 64, .library = pretended});
      ASSERT_TRUE(maker) << maker.error().detail;
      if (rank == 0)
        id = *(*maker)->new_id();
      EXPECT_EQ(id.size(), nccl::id_bytes);
      auto made = (*maker)->form(id, rank, size);
      ASSERT_TRUE(made) << made.error().detail;
      ranks.push_back(std::move(*made));
      makers.push_back(std::move(*maker));
    }
  }
  /// Polls all in turn until none runs. @returns whether that came.
  bool end() {
    for (int turn = 0; turn < 1'000; ++turn) {
      bool over = true;
      for (auto& r : ranks) {
        const auto said = r->poll();
        EXPECT_TRUE(said) << said.error().detail;
        over = over && said && *said;
      }
      if (over)
        return true;
    }
    return false;
  }
  static std::vector<std::byte> pattern(std::size_t bytes, int seed) {
    std::vector<std::byte> out(bytes);
    for (std::size_t i = 0; i < bytes; ++i)
      out[i] = static_cast<std::byte>(i * 13 + static_cast<std::size_t>(seed) * 101);
    return out;
  }

  std::vector<std::unique_ptr<communicator_maker>> makers;
  std::vector<std::unique_ptr<communicator>> ranks;
};

TEST_F(nccl_test, exchanges_piece_by_piece_both_ways_at_once) {
  begin(3);
  ASSERT_TRUE(end()) << "formed";
  // More and less than a piece, a multiple of one, two between the same ranks, a ring.
  const std::array out{pattern(1'000, 1), pattern(10, 2), pattern(128, 3), pattern(65, 4)};
  std::array<std::vector<std::byte>, 4> in;
  for (std::size_t i = 0; i < in.size(); ++i)
    in[i].resize(out[i].size());
  for (int twice = 0; twice < 2; ++twice) {
    ASSERT_TRUE(ranks[0]->exchange({{1, out[0], {}}, {1, out[1], {}}, {2, {}, in[3]}}));
    ASSERT_TRUE(ranks[1]->exchange({{0, {}, in[0]}, {0, {}, in[1]}, {2, out[2], {}}}));
    EXPECT_FALSE(*ranks[1]->poll()) << "rank 2 has not begun";
    ASSERT_TRUE(ranks[2]->exchange({{1, {}, in[2]}, {0, out[3], {}}}));
    ASSERT_TRUE(end());
    EXPECT_EQ(in, out);
    for (auto& bytes : in)
      bytes.assign(bytes.size(), std::byte{0});
  }
}

TEST_F(nccl_test, broadcasts_from_any_rank) {
  begin(3);
  ASSERT_TRUE(end());
  std::array all{pattern(1'000, 1), pattern(1'000, 2), pattern(1'000, 3)};
  const auto wanted = all[2];
  for (auto& r : ranks)
    ASSERT_TRUE(r->broadcast(2, all[static_cast<std::size_t>(&r - ranks.data())]));
  ASSERT_TRUE(end());
  for (const auto& got : all)
    EXPECT_EQ(got, wanted);
}

TEST(nccl, takes_a_cast_of_weights_in_one_piece) {
  const nccl_limits limits;
  constexpr std::size_t cast = collective::member_limits{}.cast_bytes + weight_slice_bytes;
  constexpr std::size_t flags = cast / 256; // a byte for each slice, few of which are that small
  EXPECT_LE(cast + flags, limits.transfers_max * limits.piece_bytes);
}

TEST_F(nccl_test, ranks_that_mean_different_sizes_or_roots_are_found) {
  for (const std::size_t bytes : {1'000u, 999u}) { // with another root, and of another size
    begin(2);
    ASSERT_TRUE(end());
    auto one = pattern(1'000, 1), other = pattern(bytes, 2);
    ASSERT_TRUE(ranks[0]->broadcast(0, one));
    ASSERT_TRUE(ranks[1]->broadcast(bytes == 1'000 ? 1 : 0, other));
    bool failed = false;
    for (int turn = 0; turn < 500; ++turn)
      for (auto& r : ranks)
        failed = !r->poll() || failed;
    EXPECT_TRUE(failed) << bytes;
    EXPECT_EQ(call<int (*)()>("pretend_nccl_misuses")(), 1) << bytes;
    ranks.clear();
  }
}

TEST_F(nccl_test, does_not_block_and_says_that_another_rank_has_gone) {
  begin(2);
  ASSERT_TRUE(end());
  auto bytes = pattern(1'000, 1);
  ASSERT_TRUE(ranks[0]->exchange({{1, {}, bytes}}));
  for (int turn = 0; turn < 50; ++turn)
    ASSERT_FALSE(*ranks[0]->poll());
  ranks[1]->abort();
  const auto said = ranks[0]->poll();
  ASSERT_FALSE(said);
  EXPECT_EQ(said.error().code, errc::peer_lost);
  EXPECT_NE(said.error().detail.find("network error"), std::string::npos) << said.error().detail;
  EXPECT_FALSE(ranks[0]->exchange({{1, {}, bytes}})) << "nothing but abort helps";
  ranks[0]->abort();
  ranks[0]->abort();
  EXPECT_FALSE(ranks[0]->poll());
}

TEST_F(nccl_test, an_abort_in_the_middle_touches_no_memory_afterwards) {
  begin(2);
  ASSERT_TRUE(end());
  const auto out = pattern(1'000, 1);
  auto in = pattern(1'000, 2);
  ASSERT_TRUE(ranks[0]->exchange({{1, out, {}}}));
  ASSERT_TRUE(ranks[1]->exchange({{0, {}, in}}));
  for (int turn = 0; turn < 3; ++turn)
    for (auto& r : ranks)
      ASSERT_FALSE(*r->poll());
  ranks[1]->abort();
  const auto before = in;
  EXPECT_FALSE(ranks[0]->poll());
  EXPECT_EQ(in, before);
}

TEST_F(nccl_test, a_call_that_fails_inside_a_group_fails_the_operation_and_no_later_one) {
  begin(2);
  ASSERT_TRUE(end());
  auto bytes = pattern(100, 1), more = bytes;
  set("refuse", 2);
  const auto said = ranks[0]->exchange({{1, bytes, {}}, {1, {}, more}, {1, bytes, {}}});
  ASSERT_FALSE(said);
  EXPECT_EQ(said.error().code, errc::peer_lost);
  EXPECT_EQ(said.error().detail, "a receive: NCCL says internal error");
  EXPECT_FALSE(ranks[0]->poll()) << "nothing but abort helps";
  ranks.clear();
  begin(2);
  ASSERT_TRUE(end()) << "on the same thread";
  more.assign(more.size(), std::byte{0});
  for (auto& r : ranks)
    ASSERT_TRUE(r->broadcast(0, &r == ranks.data() ? bytes : more));
  EXPECT_TRUE(end());
  EXPECT_EQ(more, bytes);
}

TEST_F(nccl_test, is_not_made_to_block_by_the_environment) {
  begin(1);
  ::setenv("NCCL_COMM_BLOCKING", "1", 1);
  const auto blocks = open_nccl(0, {.library = pretended});
  ASSERT_FALSE(blocks);
  EXPECT_EQ(blocks.error().code, errc::bad_config);
  EXPECT_NE(blocks.error().detail.find("NCCL_COMM_BLOCKING=1"), std::string::npos);
  keep_nccl_from_blocking();
  EXPECT_FALSE(open_nccl(0, {.library = pretended})) << "what is set is not overwritten";
  ::setenv("NCCL_COMM_BLOCKING", "0", 1);
  EXPECT_TRUE(open_nccl(0, {.library = pretended}));
}

TEST_F(nccl_test, is_not_made_to_block_by_nccls_file_on_a_rank_that_has_made_no_id) {
  set("file blocks", 1);
  ::unsetenv("NCCL_COMM_BLOCKING");
  const auto open = [] { return open_nccl(0, {.library = pretended}); };
  EXPECT_FALSE(open()) << "the file may set it later";
  keep_nccl_from_blocking();
  const auto maker = open();
  ASSERT_TRUE(maker) << maker.error().detail;
  const auto group = (*maker)->form(std::string(nccl::id_bytes, 'x'), 1, 2);
  EXPECT_TRUE(group) << group.error().detail; // one that blocks would be a misuse
}

TEST_F(nccl_test, a_group_that_does_not_form_is_only_waited_for) {
  set("stuck", 1);
  begin(2);
  for (int turn = 0; turn < 50; ++turn)
    ASSERT_FALSE(*ranks[0]->poll());
  ranks[0]->abort();
}

TEST_F(nccl_test, refuses_more_transfers_than_it_has_memory_for_and_a_broken_id) {
  begin(2);
  auto bytes = pattern(10, 1);
  EXPECT_EQ(ranks[0]->exchange({5, {1, bytes, {}}}).error().code, errc::frame_too_large);
  EXPECT_EQ(makers[0]->form("short", 0, 2).error().code, errc::frame_malformed);
}

TEST_F(nccl_test, says_why_there_is_none) {
  const auto none = open_nccl(0, {.library = "/nowhere/libnccl.so.2"});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().detail, "no /nowhere/libnccl.so.2");
  set("version", 21300);
  const auto old = open_nccl(0, {.library = pretended});
  ASSERT_FALSE(old);
  EXPECT_NE(old.error().detail.find("21300"), std::string::npos) << old.error().detail;
  EXPECT_EQ(open_nccl(99, {.library = pretended}).error().code, errc::bad_config);
}

TEST(nccl, has_every_call_that_is_used) {
  const std::string library = ROLLCAST_REAL_NCCL;
  if (library.empty())
    GTEST_SKIP() << "no libnccl.so.2 was found when this was built";
  std::string why_not;
  const auto calls = nccl::calls::find(library, why_not);
  ASSERT_TRUE(calls) << why_not;
  nccl::unique_id id{};
  EXPECT_EQ(calls->get_unique_id(&id), nccl::success);
  EXPECT_NE(id.bytes, nccl::unique_id{}.bytes);
}

} // namespace
} // namespace rollcast
