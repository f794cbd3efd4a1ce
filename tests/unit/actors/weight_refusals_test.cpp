// Goal: whatever is wrong with an update is one clear line, and the epoch before goes on serving.
// Method: real nodes in one process over a fake device; after each refusal a batch must give what
// it gave before, and a sound update must still go through.

#include "tests/unit/actors/weight_fixture.hpp"

#include <gtest/gtest.h>

#include <future>
#include <limits>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

const fake_values five{{"fake.a", 5}, {"fake.b", 0}};

/// A code and its line, or "done".
template <class T>
std::string said(const result<T>& answer) {
  if (answer)
    return "done";
  EXPECT_EQ(answer.error().detail.find('\n'), std::string::npos) << "one line";
  return std::string{to_string(answer.error().code)} + ": " + answer.error().detail;
}

void expect_said(const std::string& line, const std::vector<std::string>& parts) {
  for (const auto& part : parts)
    EXPECT_NE(line.find(part), std::string::npos) << "'" << part << "' is missing in: " << line;
}

/// Two workers that serve epoch 0.
class refusals : public testing::Test {
protected:
  refusals() {
    c.add_worker();
    c.add_worker();
    wait_for_ready(c, 2);
  }

  /// Epoch 0 serves on with both workers, and the next sound update is served.
  void expect_unharmed() {
    const auto status = wait_for_phase(c, "idle");
    EXPECT_EQ(status.weight_version, 0u);
    EXPECT_EQ(in_state(status, "ready"), 2u);
    EXPECT_EQ(plain(run(c, sample_batch("still"))), at_epoch(truth_of(1), 0));
    auto client = connect(c);
    const auto next = must_update(client, five).epoch;
    EXPECT_GT(next, 1u) << "the number of an aborted update is not given out again";
    EXPECT_EQ(plain(run(c, sample_batch("after"))), at_epoch(truth_of(5), next));
  }

  /// Sends a complete update of these slices, with a bucket each.
  std::string update_of(const std::vector<wire::tensor_slice>& slices,
                        const wire::begin_weights& how = {},
                        std::optional<content_hash> hash = {}) {
    auto client = connect(c);
    const auto begun = client.begin_weights(how);
    if (!begun)
      return said(begun);
    std::uint64_t number = 0;
    for (const auto& slice : slices)
      if (const auto sent = client.send_bucket({begun->epoch, ++number, {slice}}); !sent)
        return "bucket " + said(sent);
    return said(client.commit_weights({begun->epoch, hash, {}}, 20s));
  }

  cluster c;
};

TEST_F(refusals, of_a_second_update_at_the_same_time) {
  auto first = connect(c);
  ASSERT_TRUE(first.begin_weights({}));
  auto second = connect(c);
  expect_said(said(second.begin_weights({})), {"update_conflict", "epoch 1", "receiving"});
  expect_said(said(second.load_weights({.directory = "/tmp"}, 5s)), {"update_conflict"});
  expect_said(said(second.rollback_weights(5s)), {"update_conflict"});
  ASSERT_TRUE(second.abort_weights(0)) << "for a controller that died";
  expect_unharmed();
}

TEST_F(refusals, of_what_was_not_begun) {
  auto client = connect(c);
  expect_said(said(client.commit_weights({1, {}, {}}, 5s)), {"update_conflict", "epoch 1"});
  expect_said(said(client.send_bucket(bucket_of(1, 1, five))), {"update_conflict", "epoch 1"});
  expect_said(said(client.abort_weights(1)), {"update_conflict", "epoch 1"});
  expect_said(said(client.abort_weights(0)), {"update_conflict"});
  ASSERT_TRUE(client.begin_weights({.epoch = 4}));
  expect_said(said(client.send_bucket(bucket_of(3, 1, five))), {"update_conflict", "3", "4"});
  expect_said(said(client.commit_weights({3, {}, {}}, 5s)), {"update_conflict", "3", "4"});
  expect_said(said(client.abort_weights(3)), {"update_conflict", "3", "4"});
  ASSERT_TRUE(client.abort_weights(4));
  expect_said(said(client.commit_weights({4, {}, {}}, 5s)), {"update_conflict"});
  expect_unharmed();
}

TEST_F(refusals, of_a_bucket_or_a_slice_that_came_before) {
  auto client = connect(c);
  ASSERT_TRUE(client.begin_weights({}));
  ASSERT_TRUE(client.send_bucket(bucket_of(1, 1, {{"fake.a", 5}})));
  expect_said(said(client.send_bucket(bucket_of(1, 1, {{"fake.b", 0}}))),
              {"batch_conflict", "bucket 1"});
  expect_said(said(client.send_bucket(bucket_of(1, 2, {{"fake.a", 5}}))),
              {"batch_conflict", "fake.a"});
  // What is refused changes nothing, so the rest may follow.
  ASSERT_TRUE(client.send_bucket(bucket_of(1, 3, {{"fake.b", 0}})));
  const auto served = client.commit_weights({1, fake_weights{{5, 0}}.hash(), 2}, 20s);
  ASSERT_TRUE(served) << served.error().detail;
  EXPECT_EQ(plain(run(c, sample_batch("after"))), at_epoch(truth_of(5), 1));
}

TEST_F(refusals, of_a_tensor_with_a_hole) {
  auto client = connect(c);
  ASSERT_TRUE(client.begin_weights({}));
  auto half = whole_tensor("fake.a", 5);
  half.data.resize(4);
  ASSERT_TRUE(client.send_bucket({1, 1, {half, whole_tensor("fake.b", 0)}}));
  expect_said(said(client.commit_weights({1, {}, {}}, 5s)),
              {"bad_checkpoint", "fake.a", "bytes 4 to 8"});
  auto rest = whole_tensor("fake.a", 5);
  rest.offset = 4;
  rest.data = rest.data.substr(4);
  ASSERT_TRUE(client.send_bucket({1, 2, {rest}}));
  const auto served = client.commit_weights({1, {}, {}}, 20s);
  ASSERT_TRUE(served) << served.error().detail;
  EXPECT_EQ(plain(run(c, sample_batch("after"))), at_epoch(truth_of(5), 1));
}

TEST_F(refusals, of_other_numbers_of_tensors_than_were_sent) {
  auto client = connect(c);
  ASSERT_TRUE(client.begin_weights({}));
  expect_said(said(client.commit_weights({1, {}, {}}, 5s)), {"bad_checkpoint", "no tensors"});
  ASSERT_TRUE(client.send_bucket(bucket_of(1, 1, five)));
  expect_said(said(client.commit_weights({1, {}, 3}, 5s)), {"bad_checkpoint", "3", "2", "aborted"});
  expect_unharmed();
}

TEST_F(refusals, of_shapes_and_names_that_the_model_does_not_have) {
  auto wide = whole_tensor("fake.a", 5);
  wide.shape = {1, 2};
  expect_said(update_of({wide, whole_tensor("fake.b", 0)}),
              {"bad_checkpoint", "worker", "fake.a", "shape"});
  expect_said(update_of({whole_tensor("fake.a", 5), whole_tensor("fake.c", 0)}),
              {"bad_checkpoint", "fake.c"});
  expect_said(update_of({whole_tensor("fake.a", 5)}), {"bad_checkpoint", "fake.b"});
  expect_said(update_of({whole_tensor("fake.c", 5)}, {.changed_only = true}),
              {"bad_checkpoint", "fake.c"});
  expect_unharmed();
}

TEST_F(refusals, of_values_that_are_not_finite_unless_they_are_allowed) {
  auto infinite = whole_tensor("fake.a", 5);
  const float inf = std::numeric_limits<float>::infinity();
  std::memcpy(infinite.data.data() + 4, &inf, sizeof(inf));
  std::uint64_t bits = 0;
  std::memcpy(&bits, infinite.data.data(), sizeof(bits));
  expect_said(update_of({infinite, whole_tensor("fake.b", 0)}),
              {"bad_checkpoint", "fake.a", "finite"});
  EXPECT_EQ(plain(run(c, sample_batch("still"))), at_epoch(truth_of(1), 0));
  EXPECT_EQ(update_of({infinite, whole_tensor("fake.b", 0)}, {.allow_non_finite = true}), "done");
  EXPECT_EQ(plain(run(c, sample_batch("allowed"))), at_epoch(truth_of(bits), 2));
  // Who comes later is fed the same, and so is allowed the same.
  c.add_worker();
  wait_for_ready(c, 3);
  EXPECT_EQ(update_of({whole_tensor("fake.b", 6)}, {.changed_only = true}), "done")
    << "what is not sent is not looked at again";
}

TEST_F(refusals, of_content_with_another_hash_than_the_controllers) {
  expect_said(update_of({whole_tensor("fake.a", 5), whole_tensor("fake.b", 0)}, {},
                        fake_weights{{5, 1}}.hash()),
              {"bad_checkpoint", to_string(fake_weights{{5, 0}}.hash()),
               to_string(fake_weights{{5, 1}}.hash())});
  expect_unharmed();
}

TEST_F(refusals, of_numbers_that_were_served) {
  auto client = connect(c);
  must_update(client, five, {.epoch = 6});
  expect_said(said(client.begin_weights({.epoch = 6})), {"stale_epoch", "6", "7"});
  expect_said(said(client.begin_weights({.epoch = 2})), {"stale_epoch", "2", "7"});
  ASSERT_TRUE(client.begin_weights({}));
}

TEST_F(refusals, of_a_directory_that_is_none) {
  auto client = connect(c);
  expect_said(said(client.load_weights({.directory = "/nowhere"}, 5s)), {"io_failed", "/nowhere"});
  const auto empty = std::filesystem::temp_directory_path() / "rollcast-weights-empty";
  std::filesystem::create_directories(empty);
  expect_said(said(client.load_weights({.directory = empty.string()}, 5s)),
              {"bad_checkpoint", empty.string()});
  std::filesystem::remove_all(empty);
  expect_unharmed();
}

TEST_F(refusals, of_an_update_whose_controller_changes_its_mind) {
  auto client = connect(c);
  ASSERT_TRUE(client.begin_weights({}));
  ASSERT_TRUE(client.send_bucket(bucket_of(1, 1, five)));
  ASSERT_TRUE(client.abort_weights(1));
  // And once all are prepared, while an open batch holds the flip up.
  ASSERT_TRUE(client.pause_serving());
  auto receiver = connect(c);
  ASSERT_TRUE(receiver.submit(sample_batch("open")));
  auto sender = connect(c);
  auto served = std::async(std::launch::async, [&] { return update(sender, five); });
  wait_for_phase(c, "waiting");
  ASSERT_TRUE(client.abort_weights(0));
  expect_said(said(served.get()), {"cancelled", "epoch 2", "aborted"});
  ASSERT_TRUE(client.resume_serving());
  EXPECT_EQ(plain(collect(receiver, "open")), at_epoch(truth_of(1), 0));
  expect_unharmed();
}

TEST(refusal, of_an_update_whose_controller_falls_silent) {
  scheduler_options options;
  options.weight_deadlines.receiving = 150ms;
  cluster c{options};
  c.add_worker();
  wait_for_ready(c, 1);
  auto client = connect(c);
  ASSERT_TRUE(client.begin_weights({}));
  ASSERT_TRUE(client.send_bucket(bucket_of(1, 1, {{"fake.a", 5}})));
  wait_for_phase(c, "idle");
  expect_said(said(client.send_bucket(bucket_of(1, 2, {{"fake.b", 0}}))), {"update_conflict"});
  EXPECT_EQ(plain(run(c, sample_batch("still"))), at_epoch(truth_of(1), 0));
}

TEST(refusal, of_a_flip_that_a_pause_holds_up) {
  scheduler_options options;
  options.weight_deadlines.paused = 100ms;
  options.tick_interval = 10ms;
  cluster c{options};
  fake_device slow;
  slow.step_time = 300us;
  c.add_worker(slow);
  wait_for_ready(c, 1);
  auto client = connect(c);
  auto receiver = connect(c);
  auto batch = sample_batch("open");
  batch.chunk_tokens = 16;
  ASSERT_TRUE(receiver.submit(batch));
  ASSERT_TRUE(client.pause_serving());
  auto sender = connect(c);
  expect_said(said(update(sender, five)),
              {"timed_out", "epoch 1", "paused", "1 batches", "resume", "chunk edges"});
  ASSERT_TRUE(client.resume_serving());
  EXPECT_EQ(plain(collect(receiver, "open")), at_epoch(truth_of(1), 0));
}

TEST(refusal, of_nothing_because_reading_a_directory_takes_long) {
  const auto directory = std::filesystem::temp_directory_path() / "rollcast-weights-large";
  std::filesystem::create_directories(directory);
  constexpr std::uint64_t bytes = 512u << 20; // A hole on disk.
  const std::string header = R"({"fake.z":{"dtype":"F32","shape":[)" + std::to_string(bytes / 4)
                             + R"(],"data_offsets":[0,)" + std::to_string(bytes) + "]}}";
  std::ofstream{directory / "model.safetensors", std::ios::binary} << bytes_of_value(header.size())
                                                                   << header;
  std::filesystem::resize_file(directory / "model.safetensors", 8 + header.size() + bytes);
  scheduler_options options;
  options.weight_deadlines.receiving = 50ms;
  options.tick_interval = 10ms;
  cluster c{options};
  c.add_worker();
  wait_for_ready(c, 1);
  auto client = connect(c);
  expect_said(said(client.load_weights({.directory = directory.string()}, 20s)),
              {"bad_checkpoint", "fake.z"}); // And not that the controller were silent.
  std::filesystem::remove_all(directory);
  EXPECT_EQ(plain(run(c, sample_batch("still"))), at_epoch(truth_of(1), 0));
}

TEST(refusal, of_a_worker_with_another_checkpoint) {
  cluster c;
  c.add_worker();
  wait_for_ready(c, 1);
  auto client = connect(c);
  must_update(client, {{"fake.b", 6}}, {.changed_only = true});
  const auto join = [&](const std::string& name, std::uint64_t weights, std::uint64_t epoch) {
    worker_node_options options;
    options.name = name;
    options.scheduler_port = c.ports.cluster_port;
    options.weight_epoch = epoch;
    fake_device device;
    device.weights = weights;
    std::stop_source late; // One that is taken on would stay.
    auto ended = std::async(std::launch::async, [&] {
      return said(run_worker(options, std::make_unique<fake_backend>(device), late.get_token()));
    });
    if (ended.wait_for(10s) == std::future_status::timeout)
      late.request_stop();
    return ended.get();
  };
  expect_said(join("same epoch", 2, 1), {"numerics_mismatch", "epoch 1"});
  expect_said(join("older", 2, 0), {"numerics_mismatch", "checkpoint"});
  expect_said(join("older", 2, 0), {"numerics_mismatch", "checkpoint"}); // It does not heal.
  EXPECT_EQ(plain(run(c, sample_batch("still"))), at_epoch(truth_of(1 ^ 6), 1));
}

} // namespace
} // namespace rollcast::test
