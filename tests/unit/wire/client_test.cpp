// Goal: the C++ client ends every call in time, with the answer or one clear line, and loses
// nothing that is pushed while it waits for an answer.
// Method: real ZeroMQ on loopback against a fake scheduler, a ROUTER in a thread that answers as
// the test says.

#include "cluster/wire/client.hpp"
#include "cluster/wire/codec.hpp"

#include <gtest/gtest.h>
#include <zmq.hpp>

#include <functional>
#include <thread>

namespace rollcast::wire {
namespace {

using namespace std::chrono_literals;
using reply = std::vector<std::string>;

/// Answers each message with those that `answer` makes of it, in order, until it goes out of scope.
class fake_scheduler {
public:
  using answerer = std::function<reply(std::span<const std::byte>)>;

  explicit fake_scheduler(answerer answer) : answer_(std::move(answer)) {
    router_.set(zmq::sockopt::linger, 0);
    router_.set(zmq::sockopt::rcvtimeo, 10);
    router_.bind("tcp://127.0.0.1:*");
    endpoint_ = router_.get(zmq::sockopt::last_endpoint);
    thread_ = std::jthread{[this](const std::stop_token& stop) { serve(stop); }};
  }

  const std::string& endpoint() const { return endpoint_; }

private:
  void serve(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      zmq::message_t peer;
      zmq::message_t message;
      if (!router_.recv(peer, zmq::recv_flags::none))
        continue;
      if (!router_.recv(message, zmq::recv_flags::none))
        continue;
      for (const auto& out :
           answer_({static_cast<const std::byte*>(message.data()), message.size()})) {
        router_.send(zmq::buffer(peer.data(), peer.size()), zmq::send_flags::sndmore);
        router_.send(zmq::buffer(out), zmq::send_flags::none);
      }
    }
  }

  answerer answer_;
  zmq::context_t context_{1};
  zmq::socket_t router_{context_, zmq::socket_type::router};
  std::string endpoint_;
  std::jthread thread_;
};

/// A fake scheduler that answers status and has `more` for everything else.
fake_scheduler::answerer serving(std::function<reply(const request_envelope&)> more) {
  return [more = std::move(more)](std::span<const std::byte> bytes) -> reply {
    const auto got = decode_request(bytes);
    if (!got)
      return {
        encode(request_id_of(bytes), request_failed{got.error().code, got.error().detail, "", ""})};
    if (std::holds_alternative<get_status>(got->body)) {
      status_report status;
      status.model = "fake";
      return {encode(got->request_id, status)};
    }
    return more(*got);
  };
}

submit_batch one_prompt() {
  submit_batch batch;
  batch.batch_key = "k";
  batch.sampling.max_new_tokens = 4;
  batch.groups = {{.id = "", .prompt_token_ids = {1}, .group_size = 1, .seed = {}, .sampling = {}}};
  return batch;
}

response_ready result_number(std::uint64_t sequence) {
  response_ready response;
  response.batch_key = "k";
  response.sequence = sequence;
  return response;
}

std::string line_of(const result<controller_client>& got) {
  return got ? "" : std::string{to_string(got.error().code)} + ": " + got.error().detail;
}

TEST(controller_client, keeps_what_is_pushed_before_the_answer) {
  fake_scheduler scheduler{serving([](const request_envelope& got) -> reply {
    if (std::holds_alternative<submit_batch>(got.body))
      return {encode(got.request_id, batch_accepted{"k", 2, 1, "p", 3}),
              encode(0, result_number(1))};
    if (std::holds_alternative<cancel_batch>(got.body))
      return {encode(0, result_number(2)), encode(got.request_id, request_done{}),
              encode(0, batch_done{"k", 3, {}})};
    return {};
  })};
  auto client = controller_client::connect(scheduler.endpoint(), 2s);
  ASSERT_TRUE(client) << line_of(client);
  const auto accepted = client->submit(one_prompt());
  ASSERT_TRUE(accepted) << accepted.error().detail;
  EXPECT_EQ(accepted->responses, 2u);
  EXPECT_EQ(accepted->weight_version, 3u);
  ASSERT_TRUE(client->cancel("k"));
  for (std::uint64_t sequence = 1; sequence <= 2; ++sequence) {
    const auto pushed = client->next_event(2s);
    ASSERT_TRUE(pushed) << pushed.error().detail;
    ASSERT_TRUE(std::holds_alternative<response_ready>(*pushed)) << pushed->index();
    EXPECT_EQ(std::get<response_ready>(*pushed).sequence, sequence);
  }
  const auto last = client->next_event(2s);
  ASSERT_TRUE(last) << last.error().detail;
  EXPECT_TRUE(std::holds_alternative<batch_done>(*last));
}

TEST(controller_client, passes_on_what_the_scheduler_refuses) {
  fake_scheduler scheduler{serving([](const request_envelope& got) -> reply {
    return {encode(got.request_id, request_failed{errc::unknown_batch, "no batch \"k\"", "", "k"})};
  })};
  auto client = controller_client::connect(scheduler.endpoint(), 2s);
  ASSERT_TRUE(client) << line_of(client);
  const auto resumed = client->resume("k", 5);
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().code, errc::unknown_batch);
  EXPECT_EQ(resumed.error().detail, "no batch \"k\"");
  auto empty = one_prompt();
  empty.groups[0].prompt_token_ids.clear();
  const auto refused = client->submit(empty);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::bad_prompt) << refused.error().detail;
}

TEST(controller_client, reports_a_refused_acknowledgement_and_drops_a_granted_one) {
  fake_scheduler scheduler{serving([](const request_envelope& got) -> reply {
    const auto sequence = std::get<ack_results>(got.body).sequence;
    if (sequence == 1)
      return {encode(got.request_id, request_done{})};
    return {encode(got.request_id, request_failed{errc::unknown_batch, "gone", "", "k"})};
  })};
  auto client = controller_client::connect(scheduler.endpoint(), 2s);
  ASSERT_TRUE(client) << line_of(client);
  ASSERT_TRUE(client->ack("k", 1));
  ASSERT_TRUE(client->ack("k", 2));
  const auto got = client->next_event(2s);
  ASSERT_TRUE(got) << got.error().detail;
  ASSERT_TRUE(std::holds_alternative<request_failed>(*got));
  EXPECT_EQ(std::get<request_failed>(*got).message, "gone");
}

TEST(controller_client, publishes_weights_and_scores) {
  std::vector<std::string> asked;
  fake_scheduler scheduler{serving([&asked](const request_envelope& got) -> reply {
    const auto say = [&](const char* kind, const event& answer) -> reply {
      asked.emplace_back(kind);
      return {encode(got.request_id, answer)};
    };
    const weights_served served{.epoch = 9, .hash = {1, 2}, .phases = {}};
    if (std::holds_alternative<begin_weights>(got.body))
      return say("begin", weights_begun{9, 100});
    if (const auto* bucket = std::get_if<weight_bucket>(&got.body))
      return say(bucket->slices[0].data.c_str(), request_done{});
    if (const auto* commit = std::get_if<commit_weights>(&got.body))
      return say(commit->hash ? "commit" : "commit without hash", served);
    if (std::holds_alternative<load_weights>(got.body))
      return say("load", served);
    if (std::holds_alternative<rollback_weights>(got.body))
      return say("rollback", served);
    if (std::holds_alternative<abort_weights>(got.body))
      return say("abort", request_done{});
    if (std::holds_alternative<pause>(got.body))
      return say("pause", request_done{});
    if (std::holds_alternative<resume>(got.body))
      return say("resume", request_done{});
    return say("score",
               scored{.rows = {{{-1.5f, -2.5f}}}, .weight_version = 9, .numerics_profile = {}});
  })};
  auto client = controller_client::connect(scheduler.endpoint(), 2s);
  ASSERT_TRUE(client) << line_of(client);
  EXPECT_EQ(client->begin_weights({}).value().bucket_bytes_max, 100u);
  tensor_slice slice{.name = "w", .shape = {1}, .offset = 0, .data = "data"};
  EXPECT_TRUE(client->send_bucket({.epoch = 9, .bucket = 1, .slices = {slice}}));
  EXPECT_EQ(client->commit_weights({.epoch = 9, .hash = content_hash{1, 2}, .tensors = {}}, 2s)
              .value()
              .epoch,
            9u);
  EXPECT_EQ(client->load_weights({.directory = "/d"}, 2s).value().hash, (content_hash{1, 2}));
  EXPECT_TRUE(client->rollback_weights(2s));
  EXPECT_TRUE(client->abort_weights(9));
  EXPECT_TRUE(client->pause_serving());
  EXPECT_TRUE(client->resume_serving());
  const wire::score two_tokens{.sequences = {{.token_ids = {1, 2, 3}}}, .weight_version = {}};
  const auto rows = client->score(two_tokens, 2s);
  ASSERT_TRUE(rows) << rows.error().detail;
  EXPECT_EQ(rows->rows[0].logprobs, (std::vector<float>{-1.5f, -2.5f}));
  const auto short_row =
    client->score({.sequences = {{.token_ids = {1, 2}}}, .weight_version = {}}, 2s);
  ASSERT_FALSE(short_row) << "two log-probabilities for one token";
  EXPECT_EQ(short_row.error().code, errc::frame_malformed);
  EXPECT_FALSE(client->score(
    {.sequences = {{.token_ids = {1}}, {.token_ids = {1}}}, .weight_version = {}}, 2s))
    << "one row for two sequences";
  EXPECT_EQ(asked, (std::vector<std::string>{"begin", "data", "commit", "load", "rollback", "abort",
                                             "pause", "resume", "score", "score", "score"}));
}

TEST(controller_client, waits_for_a_flip_longer_than_for_an_answer) {
  fake_scheduler scheduler{serving([](const request_envelope& got) -> reply {
    std::this_thread::sleep_for(400ms);
    return {encode(got.request_id, weights_served{.epoch = 9, .hash = {}, .phases = {}})};
  })};
  auto client = controller_client::connect(scheduler.endpoint(), 200ms);
  ASSERT_TRUE(client) << line_of(client);
  EXPECT_TRUE(client->rollback_weights(20s));
  const auto late = client->rollback_weights(50ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, errc::timed_out);
}

TEST(controller_client, says_within_its_timeout_that_nobody_answers) {
  zmq::context_t context{1};
  zmq::socket_t silent{context, zmq::socket_type::router};
  silent.bind("tcp://127.0.0.1:*");
  const auto endpoint = silent.get(zmq::sockopt::last_endpoint);
  const auto begin = std::chrono::steady_clock::now();
  const auto client = controller_client::connect(endpoint, 200ms);
  const auto took = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(line_of(client), "timed_out: no answer from " + endpoint
                               + " within 200 ms: is a Rollcast scheduler running there?");
  EXPECT_GE(took, 190ms);
  EXPECT_LT(took, 1500ms);
}

TEST(controller_client, says_that_nobody_listens) {
  std::string endpoint;
  {
    zmq::context_t context{1};
    zmq::socket_t gone{context, zmq::socket_type::router};
    gone.bind("tcp://127.0.0.1:*");
    endpoint = gone.get(zmq::sockopt::last_endpoint);
  }
  const auto client = controller_client::connect(endpoint, 200ms);
  EXPECT_EQ(line_of(client).substr(0, 10), "timed_out:") << line_of(client);
}

TEST(controller_client, says_that_the_peer_is_no_scheduler) {
  fake_scheduler echo{[](std::span<const std::byte> bytes) -> reply {
    return {std::string{reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
  }};
  EXPECT_EQ(line_of(controller_client::connect(echo.endpoint(), 2s)).substr(0, 16),
            "frame_malformed:");
  fake_scheduler garbage{[](std::span<const std::byte>) -> reply { return {"hello"}; }};
  EXPECT_EQ(line_of(controller_client::connect(garbage.endpoint(), 2s)).substr(0, 16),
            "frame_malformed:");
}

TEST(controller_client, refuses_an_endpoint_that_is_none) {
  const auto client = controller_client::connect("somewhere", 1s);
  EXPECT_EQ(line_of(client).substr(0, 11), "bad_config:") << line_of(client);
}

TEST(controller_client, a_quiet_wait_ends_in_time) {
  fake_scheduler scheduler{serving([](const request_envelope&) -> reply { return {}; })};
  auto client = controller_client::connect(scheduler.endpoint(), 2s);
  ASSERT_TRUE(client) << line_of(client);
  const auto got = client->next_event(50ms);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, errc::timed_out);
}

} // namespace
} // namespace rollcast::wire
