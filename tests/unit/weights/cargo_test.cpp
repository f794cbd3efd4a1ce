// Goal: a cargo gives exactly the bytes of its manifest or says which tensor is wrong; a stage
// takes every byte of an update once, in any order, and refuses all else in one line.
// Method: random tensors cut by odd sizes and put in seeded orders; one thing broken at a time;
// several threads staging at once. Seeds are printed with a failure.

#include "cluster/weights/weight_stage.hpp"
#include "engine/model/checkpoint.hpp"
#include "tests/support/tiny_model.hpp"
#include "tests/unit/weights/sample_tensors.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <numeric>
#include <thread>

namespace rollcast {
namespace {

using outcome = weight_cargo::outcome;

std::vector<std::uint32_t> shuffled(std::uint32_t count, prng& rng) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  for (auto left = count; left > 1; --left)
    std::swap(order[left - 1], order[rng.below(left)]);
  return order;
}

TEST(weight_cargo, numbers_slices_through_all_tensors) {
  const sample_tensors sent{{100, 4, 64, 65 * 4}};
  const auto cargo = sent.cargo(64);
  ASSERT_EQ(cargo->slices(), 2u + 1u + 1u + 5u);
  EXPECT_EQ(cargo->slices_of(1), std::pair(0u, 2u));
  EXPECT_EQ(cargo->slices_of(3), std::pair(3u, 1u));
  EXPECT_EQ(cargo->bytes_of_slice(1)->bytes.size(), 36u);
  EXPECT_EQ(cargo->bytes_of_slice(8)->bytes.size(), 4u);
  EXPECT_FALSE(cargo->bytes_of_slice(9));
  EXPECT_TRUE(cargo->complete());
  EXPECT_EQ(cargo->manifest(), epoch_hash_of(sent.infos));
  std::vector<std::byte> joined;
  for (std::uint32_t slice = 4; slice < 9; ++slice) {
    const auto piece = *cargo->bytes_of_slice(slice);
    joined.insert(joined.end(), piece.bytes.begin(), piece.bytes.end());
  }
  EXPECT_TRUE(same_bytes(joined, sent.contents[3].bytes));
}

TEST(weight_cargo, is_filled_by_slices_in_any_order) {
  // Sizes on both sides of the 128 KiB runs that are hashed at once.
  const sample_tensors sent{{4, 1'000, 131'072, 400'000, 1'200'004}};
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    prng rng{seed};
    const auto slice_bytes = static_cast<std::uint32_t>(900 + rng.below(300'000));
    const auto from = sent.cargo(slice_bytes);
    const auto to = sent.expected(slice_bytes);
    auto order = shuffled(to->slices(), rng);
    if (seed == 0)
      std::iota(order.begin(), order.end(), 0u);
    for (const auto slice : order) {
      EXPECT_FALSE(to->complete()) << "seed " << seed;
      const auto put = to->put(slice, from->bytes_of_slice(slice)->bytes);
      ASSERT_TRUE(put) << "seed " << seed << ": " << put.error().detail;
      EXPECT_EQ(*put, outcome::taken) << "seed " << seed;
      EXPECT_TRUE(to->has(slice));
      EXPECT_EQ(*to->put(slice, from->bytes_of_slice(slice)->bytes), outcome::repeated);
    }
    EXPECT_TRUE(to->complete()) << "seed " << seed;
    EXPECT_EQ(to->bytes_here(), to->bytes_wanted());
    expect_all_equal(*to, sent);
  }
}

TEST(weight_cargo, fetches_a_tensor_with_another_hash_once_more_and_no_more) {
  const sample_tensors sent{{400, 1'000}};
  const auto from = sent.cargo(100);
  const auto to = sent.expected(100);
  const auto send = [&](std::uint32_t slice, bool broken) {
    const auto piece = from->bytes_of_slice(slice)->bytes;
    std::vector<std::byte> bytes{piece.begin(), piece.end()};
    if (broken)
      bytes[99] ^= std::byte{1};
    return to->put(slice, bytes);
  };
  for (std::uint32_t slice = 4; slice < 13; ++slice)
    ASSERT_EQ(*send(slice, slice == 7), outcome::taken);
  const auto handed_out = *to->bytes_of_slice(7);
  const std::vector<std::byte> before{handed_out.bytes.begin(), handed_out.bytes.end()};
  ASSERT_EQ(*send(13, false), outcome::forgotten);
  for (std::uint32_t slice = 4; slice < 14; ++slice)
    EXPECT_FALSE(to->has(slice)) << slice;
  EXPECT_EQ(to->bytes_here(), 0u);
  EXPECT_FALSE(to->tensor("t01"));
  for (std::uint32_t slice = 4; slice < 13; ++slice)
    ASSERT_EQ(*send(slice, slice == 8), outcome::taken);
  EXPECT_TRUE(same_bytes(handed_out.bytes, before)) << "it may be on its way to a peer";
  const auto second = send(13, false);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, errc::frame_malformed);
  EXPECT_NE(second.error().detail.find("tensor t01"), std::string::npos) << second.error().detail;
  EXPECT_NE(second.error().detail.find(to_string(sent.infos[1].hash)), std::string::npos);
  EXPECT_FALSE(to->complete());
}

TEST(weight_cargo, becomes_right_when_the_second_time_is) {
  const sample_tensors sent{{400}};
  const auto from = sent.cargo(400);
  const auto to = sent.expected(400);
  std::vector<std::byte> bad(400);
  ASSERT_EQ(*to->put(0, bad), outcome::forgotten);
  ASSERT_EQ(*to->put(0, from->bytes_of_slice(0)->bytes), outcome::taken);
  EXPECT_TRUE(to->complete());
  expect_all_equal(*to, sent);
}

TEST(weight_cargo, lacks_a_tensor_that_was_wrong_also_if_there_is_no_memory_for_it) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends a process that gets no more address space";
#endif
  constexpr std::uint32_t mib = 1u << 20;
  const sample_tensors sent{{2 * mib}};
  const auto from = sent.cargo(mib);
  const auto to = sent.expected(mib);
  const std::vector<std::byte> bad(mib);
  ASSERT_EQ(*to->put(0, from->bytes_of_slice(0)->bytes), outcome::taken);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  rlimit none = before;
  none.rlim_cur = mib;
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &none), 0);
  const auto wrong = to->put(1, bad);
  const auto without = to->put(0, from->bytes_of_slice(0)->bytes);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  ASSERT_TRUE(wrong) << wrong.error().detail;
  EXPECT_EQ(*wrong, outcome::forgotten);
  ASSERT_FALSE(without);
  EXPECT_EQ(without.error().code, errc::queue_full);
  EXPECT_FALSE(to->has(0) || to->has(1)) << "a pull asks for them again";
  EXPECT_EQ(to->bytes_here(), 0u);
  EXPECT_FALSE(to->left_out(0));
  for (const std::uint32_t slice : {0u, 1u})
    ASSERT_EQ(*to->put(slice, from->bytes_of_slice(slice)->bytes), outcome::taken);
  EXPECT_TRUE(to->complete());
  expect_all_equal(*to, sent);
}

TEST(weight_cargo, leaves_out_what_is_not_wanted) {
  const sample_tensors sent{{400, 1'000, 400}};
  const auto from = sent.cargo(1'000);
  const auto to = sent.expected(1'000, [](const tensor_info& t) { return t.name != "t01"; });
  EXPECT_EQ(to->slices(), 3u);
  EXPECT_EQ(to->bytes_wanted(), 800u);
  EXPECT_TRUE(to->left_out(1));
  EXPECT_FALSE(to->left_out(2));
  EXPECT_FALSE(to->put(1, from->bytes_of_slice(1)->bytes));
  ASSERT_TRUE(to->put(0, from->bytes_of_slice(0)->bytes));
  ASSERT_TRUE(to->put(2, from->bytes_of_slice(2)->bytes));
  EXPECT_TRUE(to->complete());
  EXPECT_FALSE(to->tensor("t01"));
  EXPECT_TRUE(to->tensor("t02"));
}

TEST(weight_cargo, refuses_slices_and_manifests_that_cannot_be) {
  const sample_tensors sent{{400}};
  const auto to = sent.expected(100);
  const std::vector<std::byte> bytes(100);
  EXPECT_FALSE(to->put(4, bytes));
  EXPECT_FALSE(to->put(0, std::span{bytes}.first(99)));
  EXPECT_FALSE(to->put(UINT32_MAX, bytes));
  const auto refused = [](std::vector<tensor_info> infos, std::uint32_t slice_bytes = 100) {
    const auto made = weight_cargo::expecting(std::move(infos), slice_bytes, {}, 1'000'000);
    return made ? errc::ok : made.error().code;
  };
  const tensor_info one{"a", kernels::dtype::f32, {10}, {}};
  const tensor_info two{"b", kernels::dtype::f32, {10}, {}};
  EXPECT_EQ(refused({one, two}), errc::ok);
  EXPECT_EQ(refused({two, one}), errc::frame_malformed);
  EXPECT_EQ(refused({one, one}), errc::frame_malformed);
  EXPECT_EQ(refused({one}, 0), errc::bad_config);
  EXPECT_EQ(refused({{"a", kernels::dtype::f32, {4, 0}, {}}}), errc::frame_malformed);
  EXPECT_EQ(refused({{"a", kernels::dtype::f32, {250'001}, {}}}), errc::frame_too_large);
  EXPECT_EQ(refused({one, {"b", kernels::dtype::f32, {249'995}, {}}}), errc::frame_too_large);
  EXPECT_EQ(refused({{"a", kernels::dtype::f32, {std::size_t{1} << 62, 4}, {}}}),
            errc::frame_too_large);
  EXPECT_EQ(refused(std::vector<tensor_info>(weight_tensors_max + 1)), errc::frame_too_large);
}

TEST(weight_cargo, refuses_slices_so_small_that_their_list_would_fill_the_memory) {
  const auto made = [](std::size_t bytes, std::uint32_t slice_bytes) {
    const tensor_info one{"a", kernels::dtype::bf16, {bytes / 2}, {}};
    return weight_cargo::expecting({one}, slice_bytes, [](const auto&) { return false; });
  };
  EXPECT_TRUE(made(std::size_t{1} << 40, weight_slice_bytes)) << "the largest update";
  EXPECT_TRUE(made(weight_slices_max, 1));
  const auto refused = made(std::size_t{1} << 29, 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::frame_too_large);
  EXPECT_FALSE(made(std::size_t{1} << 40, 1));
}

TEST(weight_cargo, of_a_directory_has_all_its_tensors) {
  const temporary_directory directory;
  write_tiny_model(directory.path(), architecture::qwen3);
  const auto cargo = open_cargo(directory.path(), {}, 1'000);
  ASSERT_TRUE(cargo) << cargo.error().detail;
  const auto source = checkpoint::open(directory.path());
  ASSERT_TRUE(source);
  ASSERT_EQ((*cargo)->tensors().size(), source->names().size());
  for (const auto& info : (*cargo)->tensors()) {
    const auto view = source->tensor(info.name);
    ASSERT_TRUE(view);
    EXPECT_EQ(info.hash, hash_bytes(view->bytes)) << info.name;
    EXPECT_TRUE(same_bytes((*cargo)->tensor(info.name)->bytes, view->bytes)) << info.name;
  }
  const auto norms =
    open_cargo(directory.path(), [](std::string_view name) { return name == "model.norm.weight"; });
  ASSERT_TRUE(norms) << norms.error().detail;
  EXPECT_EQ((*norms)->tensors().size(), 1u);
  EXPECT_FALSE(open_cargo(directory.path() / "nowhere"));
}

TEST(tensor_memory, keeps_what_was_let_go_for_the_same_size_up_to_its_limit) {
  constexpr std::uint64_t mib = 1u << 20;
  tensor_memory memory{5 * mib};
  auto two = *memory.make(2 * mib);
  auto three = *memory.make(3 * mib);
  auto four = *memory.make(4 * mib);
  const auto place = two.get();
  two.reset();
  EXPECT_EQ(memory.kept_bytes(), 2 * mib);
  EXPECT_NE((*memory.make(3 * mib)).get(), place);
  EXPECT_EQ(memory.kept_bytes(), 5 * mib);
  three.reset();
  four.reset();
  EXPECT_EQ(memory.kept_bytes(), 5 * mib) << "more does not fit";
  auto again = *memory.make(2 * mib);
  EXPECT_EQ(again.get(), place);
  EXPECT_EQ(memory.kept_bytes(), 3 * mib);
  memory.release();
  EXPECT_EQ(memory.kept_bytes(), 0u);
  memory = tensor_memory{}; // what is out lives on
  again.get()[2 * mib - 1] = std::byte{1};
}

TEST(running_hash, equals_the_hash_of_all_pieces_together) {
  const sample_tensors sent{{400'000}};
  const auto bytes = sent.contents[0].bytes;
  prng rng{1};
  running_hash hash;
  for (int round = 0; round < 3; ++round) {
    for (std::size_t at = 0; at < bytes.size();) {
      const auto size = std::min<std::size_t>(rng.below(9'000), bytes.size() - at);
      hash.update(bytes.subspan(at, size));
      at += size;
    }
    EXPECT_EQ(hash.digest(), hash_bytes(bytes));
    hash.restart();
  }
}

// -- staging ------------------------------------------------------------------

const std::vector<std::size_t> ten{10};

errc staged(weight_stage& stage, std::string_view name, std::span<const std::size_t> shape,
            std::uint64_t offset, std::size_t bytes, kernels::dtype type = kernels::dtype::f32) {
  const std::vector<std::byte> zeros(bytes);
  const auto added = stage.add_slice({name, type, shape, offset}, zeros);
  if (added)
    return errc::ok;
  EXPECT_EQ(added.error().detail.find('\n'), std::string::npos) << added.error().detail;
  return added.error().code;
}

TEST(weight_stage, takes_slices_in_any_order_from_several_threads) {
  const sample_tensors sent{{4, 40'000, 1'300'000, 800, 65'536}};
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    prng rng{seed};
    const auto cut = sent.cargo(static_cast<std::uint32_t>(700 + rng.below(20'000)));
    const auto order = shuffled(cut->slices(), rng);
    weight_stage_limits limits;
    limits.pieces_max = 10'000;
    weight_stage stage{seed, limits};
    const auto send = [&](std::size_t begin, std::size_t step) {
      for (std::size_t i = begin; i < order.size(); i += step) {
        const auto [first, count] = cut->slices_of(order[i]);
        std::size_t tensor = 0;
        for (std::uint32_t slice = 0; slice < first; ++tensor)
          slice += cut->slices_of(slice).second;
        const auto& info = sent.infos[tensor];
        const auto offset = std::uint64_t{order[i] - first} * cut->slice_bytes();
        const auto added = stage.add_slice({info.name, info.type, info.shape, offset},
                                           cut->bytes_of_slice(order[i])->bytes);
        EXPECT_TRUE(added) << "seed " << seed << ": " << added.error().detail;
      }
    };
    {
      const std::jthread one{send, 0, 2};
      const std::jthread two{send, 1, 2};
    }
    const auto done = stage.finish(5'000);
    ASSERT_TRUE(done) << "seed " << seed << ": " << done.error().detail;
    EXPECT_EQ((*done)->tensors(), sent.infos) << "seed " << seed;
    expect_all_equal(**done, sent);
  }
}

TEST(weight_stage, takes_every_byte_once) {
  weight_stage stage{1};
  EXPECT_EQ(staged(stage, "a", ten, 8, 8), errc::ok);
  EXPECT_EQ(staged(stage, "a", ten, 8, 8), errc::batch_conflict);
  EXPECT_EQ(staged(stage, "a", ten, 0, 9), errc::batch_conflict);
  EXPECT_EQ(staged(stage, "a", ten, 15, 2), errc::batch_conflict);
  EXPECT_EQ(staged(stage, "a", ten, 10, 2), errc::batch_conflict);
  EXPECT_EQ(staged(stage, "a", ten, 0, 40), errc::batch_conflict);
  EXPECT_EQ(staged(stage, "a", ten, 24, 16), errc::ok);
  EXPECT_EQ(staged(stage, "a", ten, 16, 9), errc::batch_conflict);
  const auto early = stage.finish();
  ASSERT_FALSE(early);
  EXPECT_NE(early.error().detail.find("a lacks bytes 0 to 8 of 40"), std::string::npos)
    << early.error().detail;
  EXPECT_EQ(staged(stage, "a", ten, 0, 8), errc::ok);
  const auto still = stage.finish();
  ASSERT_FALSE(still);
  EXPECT_NE(still.error().detail.find("a lacks bytes 16 to 24 of 40"), std::string::npos)
    << still.error().detail;
  EXPECT_EQ(staged(stage, "a", ten, 16, 8), errc::ok);
  EXPECT_EQ(staged(stage, "a", ten, 0, 40), errc::batch_conflict);
  const auto done = stage.finish();
  ASSERT_TRUE(done) << done.error().detail;
  EXPECT_EQ((*done)->tensors()[0].hash, hash_bytes(std::vector<std::byte>(40)));
  EXPECT_EQ(staged(stage, "b", ten, 0, 40), errc::cancelled);
  EXPECT_FALSE(stage.finish());
}

TEST(weight_stage, that_nobody_wants_any_more_ends_at_once) {
  weight_stage stage{1};
  EXPECT_EQ(staged(stage, "a", ten, 0, 40), errc::ok);
  stage.give_up();
  const auto finished = stage.finish();
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().code, errc::cancelled);
  EXPECT_EQ(staged(stage, "b", ten, 0, 40), errc::cancelled);
}

TEST(weight_stage, refuses_what_cannot_be_and_goes_on) {
  weight_stage_limits limits;
  limits.bytes_max = 100;
  limits.tensors_max = 2;
  limits.name_bytes_max = 5;
  limits.pieces_max = 2;
  weight_stage stage{1, limits};
  const std::vector<std::size_t> huge{std::size_t{1} << 40, std::size_t{1} << 40};
  const std::vector<std::size_t> none{3, 0};
  const std::vector<std::size_t> deep(9, 1);
  const std::vector<std::size_t> two_by_five{2, 5};
  EXPECT_FALSE(stage.finish()) << "nothing came";
  EXPECT_EQ(staged(stage, "", ten, 0, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "sixsix", ten, 0, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a\nb", ten, 0, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", huge, 0, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", none, 0, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", deep, 0, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", ten, 0, 0), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", ten, 0, 41), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", ten, 40, 4), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", ten, UINT64_MAX, 4), errc::frame_malformed);
  const std::vector<std::size_t> large{26};
  EXPECT_EQ(staged(stage, "a", large, 0, 4), errc::frame_too_large);
  EXPECT_EQ(staged(stage, "a", ten, 0, 4), errc::ok);
  EXPECT_EQ(staged(stage, "a", two_by_five, 4, 4), errc::bad_checkpoint);
  EXPECT_EQ(staged(stage, "a", ten, 4, 4, kernels::dtype::bf16), errc::bad_checkpoint);
  EXPECT_EQ(staged(stage, "a", ten, 36, 5), errc::frame_malformed);
  EXPECT_EQ(staged(stage, "a", ten, 8, 4), errc::ok);
  EXPECT_EQ(staged(stage, "a", ten, 16, 4), errc::frame_too_large) << "a third piece";
  EXPECT_EQ(staged(stage, "a", ten, 4, 4), errc::ok);
  EXPECT_EQ(staged(stage, "a", ten, 12, 28), errc::ok);
  const std::vector<std::size_t> sixteen{16};
  EXPECT_EQ(staged(stage, "b", sixteen, 0, 64), errc::frame_too_large) << "40 of 100 are taken";
  EXPECT_EQ(staged(stage, "b", ten, 0, 40), errc::ok);
  EXPECT_EQ(staged(stage, "c", deep, 0, 4), errc::frame_malformed);
  const std::vector<std::size_t> one{1};
  EXPECT_EQ(staged(stage, "c", one, 0, 4), errc::frame_too_large) << "a third tensor";
  EXPECT_EQ(stage.bytes_here(), 80u);
  const auto done = stage.finish();
  ASSERT_TRUE(done) << done.error().detail;
  EXPECT_EQ((*done)->tensors().size(), 2u);
}

} // namespace
} // namespace rollcast
