// Goal: KV images come back byte for byte from memory and from disk, within the given space, and
// nothing is left of them when the process ends.
// Method: images of known bytes; a directory of this test's own; small limits.

#include "engine/cache/spill_store.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <string>
#include <vector>

namespace rollcast {
namespace {

constexpr std::uint64_t page = 64 * 1024;
constexpr std::uint64_t unit = 1024; ///< A page is a multiple of it.

kv_bytes image_of(std::size_t bytes, unsigned seed) {
  kv_bytes image(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    image[i] = static_cast<std::byte>((i * 31 + seed * 7 + (i >> 11)) & 0xff);
  return image;
}

kv_manifest manifest_of(std::uint64_t response, std::size_t bytes) {
  return {response_id{response}, static_cast<std::uint32_t>(response * 10), bytes, {}, {}};
}

TEST(spill_store, memory_first_then_disk_and_both_give_back_what_they_got) {
  const temporary_directory dir;
  const auto store = spill_store::open({2 * page, 4 * page, dir.path()}, unit);
  ASSERT_TRUE(store);
  const std::size_t sizes[] = {900, 2 * page + 17, page, 1};
  for (std::uint64_t r = 0; r < 4; ++r)
    ASSERT_TRUE((*store)->put(manifest_of(r + 1, sizes[r]), image_of(sizes[r], unsigned(r))));
  EXPECT_EQ((*store)->memory_used(), 2 * page) << "the first, and the beginning of the second";
  EXPECT_EQ((*store)->disk_used(), 4 * page) << "its two other pages, and two";
  for (std::uint64_t r = 0; r < 4; ++r) {
    kv_bytes back;
    const auto manifest = (*store)->get({r + 1}, back);
    ASSERT_TRUE(manifest) << r;
    EXPECT_EQ(manifest->tokens, (r + 1) * 10);
    EXPECT_EQ(back, image_of(sizes[r], unsigned(r))) << r;
    EXPECT_TRUE((*store)->holds({r + 1})) << "stays until it is dropped";
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path())) << "the file has no name";
}

TEST(spill_store, what_is_dropped_gives_its_space_to_others) {
  const temporary_directory dir;
  const auto store = spill_store::open({0, 3 * page, dir.path()}, unit);
  ASSERT_TRUE(store);
  for (unsigned lap = 0; lap < 5; ++lap) {
    ASSERT_TRUE((*store)->put(manifest_of(1, page), image_of(page, lap)));
    ASSERT_TRUE((*store)->put(manifest_of(2, 2 * page), image_of(2 * page, lap + 50)));
    const auto full = (*store)->put(manifest_of(3, 1), image_of(1, 0));
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code, errc::out_of_kv_blocks);
    EXPECT_FALSE((*store)->holds({3}));
    kv_bytes back;
    ASSERT_TRUE((*store)->get({2}, back));
    EXPECT_EQ(back, image_of(2 * page, lap + 50));
    (*store)->drop({1});
    (*store)->drop({2});
    EXPECT_EQ((*store)->disk_used(), 0u);
  }
}

TEST(spill_store, a_newer_image_takes_the_place_of_the_older) {
  const auto store = spill_store::open({2 * page, 0, {}}, unit);
  ASSERT_TRUE(store);
  ASSERT_TRUE((*store)->put(manifest_of(1, 90), image_of(90, 1)));
  ASSERT_TRUE((*store)->put(manifest_of(1, 100), image_of(100, 2)));
  kv_bytes back;
  ASSERT_TRUE((*store)->get({1}, back));
  EXPECT_EQ(back, image_of(100, 2));
  EXPECT_EQ((*store)->memory_used(), page);
  EXPECT_FALSE((*store)->put(manifest_of(1, 2 * page + 1), image_of(2 * page + 1, 3)));
  EXPECT_FALSE((*store)->holds({1})) << "an old image would be of the wrong tokens";
}

TEST(spill_store, memory_that_the_system_does_not_give_is_refused_in_one_line) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends a process that gets no more address space";
#endif
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  rlimit little = before;
  little.rlim_cur = 1u << 20;
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &little), 0);
  const auto store = spill_store::open({std::uint64_t{256} << 20, 0, {}}, unit);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().code, errc::bad_config);
  EXPECT_NE(store.error().detail.find("256 MiB"), std::string::npos) << store.error().detail;
  EXPECT_NE(store.error().detail.find("--kv-spill-memory-mib"), std::string::npos);
}

TEST(spill_store, a_directory_that_will_not_do_is_refused_in_one_line) {
  const auto missing = spill_store::open({0, page, "/nonexistent"}, unit);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, errc::bad_config);
  EXPECT_NE(missing.error().detail.find("/nonexistent"), std::string::npos);
  const temporary_directory dir;
  const auto huge = spill_store::open({0, ~std::uint64_t{0} >> 1, dir.path()}, unit);
  ASSERT_FALSE(huge);
  EXPECT_NE(huge.error().detail.find("MiB"), std::string::npos);
}

} // namespace
} // namespace rollcast
