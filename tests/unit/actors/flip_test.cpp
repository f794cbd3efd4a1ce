// Goal: no worker flips before the journal has on disk that it is to; when all processes have lost
// their weights, the batches that wait for those end, each after its whole time.
// Method: as scheduler_journal_test; the worker's part of an update is said by the test.

#include "tests/unit/actors/journal_fixture.hpp"

namespace rollcast::test {
namespace {

struct flip_test : scheduler_journal_test {
  static weight_news prepared() {
    weight_news news;
    news.kind = static_cast<std::uint8_t>(weight_news_kind::prepared);
    news.hash = {7, 7};
    return news;
  }
  /// Has the one worker prepare an update to epoch 1; what comes next is its flip.
  void prepare(weight_news news = prepared()) {
    with_weights = true;
    start();
    worker = spawn(reckoner, &log_of, plain_hello());
    join(worker);
    settle();
    commit();
    ask(wire::begin_weights{});
    wire::weight_bucket bucket{1, 1, {}};
    bucket.slices.push_back({"first", kernels::dtype::f32, {2}, 0, std::string(8, 'x')});
    ask(bucket);
    ask(wire::commit_weights{1, {}, 1});
    settle();
    commit();
    ASSERT_EQ(log_of.prepared.size(), 1u);
    news.worker = log_of.id;
    news.update = log_of.prepared[0];
    self->send(sut, atom::weights_v, news);
    settle();
  }

  journal::epoch_decided decided() const { return *log.image_of(log.all.size()).weights; }

  worker_log log_of;
  decode_worker_actor worker;
};

TEST_F(flip_test, waits_until_the_journal_has_it) {
  prepare();
  EXPECT_EQ(decided(), (journal::epoch_decided{1, {7, 7}}));
  pass(5s);
  EXPECT_TRUE(log_of.flips.empty()) << "a restart would not know of it";
  commit();
  settle();
  EXPECT_EQ(log_of.flips, std::vector<std::uint64_t>{1});
}

TEST_F(flip_test, comes_to_nothing_if_the_worker_refuses_and_its_words_are_one_line) {
  weight_news news;
  news.kind = static_cast<std::uint8_t>(weight_news_kind::refused);
  news.code = static_cast<std::uint8_t>(errc::bad_checkpoint);
  news.why = "no good\nand a line of its own " + std::string(10'000, 'x');
  prepare(news);
  pass(1s);
  commit();
  settle();
  const auto* const failed = std::get_if<wire::request_failed>(&controller->all.back());
  ASSERT_NE(failed, nullptr);
  EXPECT_EQ(failed->code, errc::bad_checkpoint);
  EXPECT_NE(failed->message.find("no good?and"), std::string::npos) << failed->message;
  EXPECT_LT(failed->message.size(), 5'000u);
}

TEST_F(flip_test, comes_to_nothing_if_the_journal_cannot_write) {
  prepare();
  health = {false, "the disk is full", 0, 0};
  for (int i = 0; i < 200; ++i)
    pass(200ms);
  EXPECT_TRUE(log_of.flips.empty());
  ASSERT_FALSE(controller->failures.empty());
  EXPECT_EQ(controller->failures.back(), errc::io_failed);
  EXPECT_EQ(decided(), (journal::epoch_decided{0, {1, 0}})) << "it takes its word back";
  commit();
  settle();
  EXPECT_TRUE(log_of.flips.empty());
  kill();
  start();
  settle();
  join(worker);
  settle();
  EXPECT_TRUE(log_of.admitted) << "epoch 0 is served on";
  ask(wire::begin_weights{1, false, wire::weight_flip::between_batches, false});
  settle();
  EXPECT_EQ(controller->failures.back(), errc::stale_epoch) << "1 was promised before";
}

TEST_F(flip_test, is_the_epoch_of_the_next_scheduler_though_nobody_flipped) {
  prepare();
  durable = log.all.size();
  kill();
  start();
  settle();
  join(worker);
  settle();
  EXPECT_FALSE(log_of.admitted);
  ASSERT_EQ(log_of.prepared.size(), 2u) << "it is asked whether it can have it";
  EXPECT_GT(log_of.prepared[1], 1'000'000'000u) << "late news of the old update are no news";
  ask(wire::get_status{});
  settle();
  EXPECT_EQ(std::get<wire::status_report>(controller->all.back()).weights.epoch, 1u);
}

/// A fleet whose processes have all been started again after an update.
struct forgetful_fleet : flip_test {
  /// The next scheduler has no tensors.
  void restart() {
    durable = log.all.size();
    kill();
    start();
  }
  /// A worker comes, is asked, and all it has are the weights of before.
  void join_with_old_weights() {
    join(worker);
    settle();
    weight_news others;
    others.worker = log_of.id;
    others.update = log_of.prepared.back();
    others.kind = static_cast<std::uint8_t>(weight_news_kind::prepared);
    others.hash = plain_hello().weights_hash;
    self->send(sut, atom::weights_v, others);
    settle();
    EXPECT_FALSE(log_of.admitted);
  }
  void wait(int seconds) {
    for (int i = 0; i < seconds; ++i)
      pass(1s);
    commit();
    settle();
  }
  static wire::submit_batch batch(const std::string& key) {
    auto made = sample();
    made.batch_key = key;
    return made;
  }
  std::vector<std::string> given_up() const {
    std::vector<std::string> keys;
    for (const auto& event : controller->all)
      if (const auto* f = std::get_if<wire::request_failed>(&event))
        keys.push_back(f->batch_key + " " + std::string{to_string(f->code)});
    return keys;
  }
};

TEST_F(forgetful_fleet, ends_the_batches_that_wait_for_weights_which_nobody_has) {
  options.batches_wait = true;
  prepare();
  ask(batch("running"));
  ask(batch("queued"));
  settle();
  restart();
  ask(wire::resume_results{"running", 0});
  ask(wire::resume_results{"queued", 0});
  wait(400);
  EXPECT_TRUE(controller->failures.empty()) << "a worker that has them may come yet";
  join_with_old_weights();
  wait(200);
  EXPECT_TRUE(controller->failures.empty()) << "and the controller may publish";
  wait(101);
  EXPECT_EQ(given_up(), (std::vector<std::string>{"running stale_epoch", "queued stale_epoch"}));
}

TEST_F(forgetful_fleet, gives_a_batch_that_comes_later_its_whole_time) {
  prepare();
  restart();
  join_with_old_weights();
  wait(100);
  ask(batch("later"));
  wait(150);
  ask(batch("last"));
  wait(149);
  EXPECT_EQ(given_up(), std::vector<std::string>{});
  wait(5);
  EXPECT_EQ(given_up(), std::vector<std::string>{"later stale_epoch"});
  wait(140);
  EXPECT_EQ(given_up().size(), 1u);
  wait(10);
  EXPECT_EQ(given_up().back(), "last stale_epoch");
}

} // namespace
} // namespace rollcast::test
