// Goal: with a data key KV moves between those who hold it and to nobody else, before and after the
// key changes. The test prints what encryption costs a transfer.
// Method: two exchanges on loopback with the same key file, another one, or none.

#include "cluster/transport/kv_exchange.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>

namespace rollcast {
namespace {

using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;

const std::vector<token_id> tokens{5, 6, 7, 8, 9};

std::shared_ptr<kv_image> image_of(std::size_t bytes) {
  auto image = std::make_shared<kv_image>();
  image->bytes.resize(bytes, std::byte{7});
  image->manifest = {
    {1}, 4, bytes, hash_of(std::span<const token_id>{tokens}.first(4)), hash_bytes(image->bytes)};
  return image;
}

class kv_exchange_with_keys : public testing::Test {
protected:
  void put(const std::string& name, const key_pair& keys) {
    const auto fresh = where_ / (name + ".new");
    std::ofstream{fresh} << keys.secret_key;
    ::chmod(fresh.c_str(), 0600);
    std::filesystem::rename(fresh, where_ / name);
  }
  std::shared_ptr<curve_policy> policy(const std::string& name) {
    curve_policy_options options;
    options.secret = where_ / name;
    options.grace = 1s;
    return curve_policy::open(options).value();
  }
  std::unique_ptr<kv_exchange> open(const std::shared_ptr<curve_policy>& keys) {
    kv_exchange_options options;
    options.keys = keys;
    options.idle_ms_max = 1'500ms;
    return kv_exchange::open(options,
                             [this](const kv_request&, const kv_ticket& ticket) {
                               const std::scoped_lock lock{ready_};
                               source_->answer(ticket, image_);
                             })
      .value();
  }
  void offer(const std::shared_ptr<curve_policy>& keys, std::size_t bytes) {
    image_ = image_of(bytes);
    const std::scoped_lock lock{ready_};
    source_ = open(keys);
  }
  result<kv_image> pull(kv_exchange& into) {
    std::promise<result<kv_image>> promise;
    auto future = promise.get_future();
    into.pull(source_->endpoint(), {{1}, {1}}, tokens,
              [&](result<kv_image> got) { promise.set_value(std::move(got)); });
    return future.get();
  }

  temporary_directory where_;
  std::shared_ptr<const kv_image> image_;
  std::mutex ready_; ///< Nobody asks before `source_` is set; this tells the sanitizer so.
  std::unique_ptr<kv_exchange> source_;
};

TEST_F(kv_exchange_with_keys, moves_images_between_holders_of_the_key_only) {
  put("ours", make_keys());
  put("theirs", make_keys());
  offer(policy("ours"), 3u << 20);
  const auto friendly = open(policy("ours"));
  const auto got = pull(*friendly);
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_EQ(got->bytes, image_->bytes);
  for (const auto& keys : {std::shared_ptr<curve_policy>{}, policy("theirs")}) {
    const auto stranger = open(keys);
    const auto refused = pull(*stranger);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, errc::timed_out);
  }
  offer(nullptr, 100); // and who holds a key takes nothing from one without
  EXPECT_FALSE(pull(*friendly));
}

TEST_F(kv_exchange_with_keys, goes_on_when_the_key_changes) {
  put("ours", make_keys());
  const auto keys = policy("ours");
  offer(keys, 1u << 20);
  const auto target = open(keys);
  ASSERT_TRUE(pull(*target));
  const auto fresh = make_keys();
  put("ours", fresh);
  for (int i = 0; i < 300 && !(keys->current() == fresh); ++i)
    std::this_thread::sleep_for(10ms);
  ASSERT_EQ(keys->current(), fresh);
  EXPECT_TRUE(pull(*target)) << "by the connection that was there";
  const auto late = open(policy("ours"));
  EXPECT_TRUE(pull(*late)) << "by a new one";
  std::this_thread::sleep_for(2s); // the old key is good for nothing any more
  const auto later = open(policy("ours"));
  EXPECT_TRUE(pull(*later)) << "when the old key is forgotten";
}

TEST_F(kv_exchange_with_keys, costs_what_is_printed_here) {
  constexpr std::size_t bytes = 128u << 20;
  put("ours", make_keys());
  for (const bool encrypted : {false, true}) {
    offer(encrypted ? policy("ours") : nullptr, bytes);
    const auto target = open(encrypted ? policy("ours") : nullptr);
    double best = 1e9;
    for (int round = 0; round < 3; ++round) {
      const auto begin = clock::now();
      ASSERT_TRUE(pull(*target));
      best = std::min(best, std::chrono::duration<double>(clock::now() - begin).count());
    }
    std::printf("KV transfer, %s: %.2f GB/s\n", encrypted ? "CURVE" : "plain",
                static_cast<double>(bytes) / best * 1e-9);
  }
}

} // namespace
} // namespace rollcast
