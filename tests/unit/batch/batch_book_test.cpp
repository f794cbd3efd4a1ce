// Goal: the book runs a batch once per key, appends tokens once and at the edge only, numbers every
// response once, keeps results until they are acknowledged, and measures makespan and tail.
// Method: direct calls with times made up; no actors, no sockets.

#include "cluster/batch/batch_book.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <array>
#include <set>

namespace rollcast {
namespace {

wire::submit_batch spec_of(const std::string& key, std::uint32_t groups, std::uint32_t size) {
  wire::submit_batch spec;
  spec.batch_key = key;
  spec.seed = 5;
  spec.sampling.max_new_tokens = 50;
  for (std::uint32_t g = 0; g < groups; ++g) {
    auto& group = spec.groups.emplace_back();
    group.id = "g" + std::to_string(g);
    group.prompt_token_ids = {1, 2};
    group.group_size = size;
  }
  return spec;
}

struct book_test : testing::Test {
  batch_record& started(const wire::submit_batch& spec, std::uint64_t now = 0) {
    const auto batch = book.submit(spec, now);
    EXPECT_TRUE(batch) << batch.error().detail;
    (*batch)->receiver = "peer";
    book.start(**batch, now);
    return **batch;
  }
  bool append(batch_record& batch, std::size_t i, std::uint32_t position, std::size_t count) {
    const std::vector<token_id> tokens(count, 3);
    const std::vector<float> numbers(count, 0.25f);
    return book.append({&batch, &batch.responses[i]}, position, tokens, numbers, numbers);
  }
  void finish(batch_record& batch, std::size_t i, std::uint64_t now = 0) {
    book.finish({&batch, &batch.responses[i]}, wire::finish_reason::stop, now);
  }

  batch_book book{{.live_batches = 3, .kept_batches = 4, .responses = 100, .results_in_flight = 5}};
};

TEST_F(book_test, runs_a_key_once_and_refuses_it_for_other_content) {
  const auto first = book.submit(spec_of("k", 2, 3), 0);
  const auto again = book.submit(spec_of("k", 2, 3), 9);
  ASSERT_TRUE(first && again);
  EXPECT_EQ(*first, *again);
  EXPECT_EQ((*again)->submitted_ns, 0u);
  auto other = spec_of("k", 2, 3);
  other.sampling.temperature = 0.5f;
  const auto conflict = book.submit(other, 0);
  ASSERT_FALSE(conflict);
  EXPECT_EQ(conflict.error().code, errc::batch_conflict);
}

TEST_F(book_test, tells_contents_apart_by_every_field) {
  std::vector<wire::submit_batch> all(14, spec_of("k", 1, 1));
  all[1].seed = 6;
  all[2].groups[0].id = "x";
  all[3].groups[0].prompt_token_ids = {1, 2, 3};
  all[4].groups[0].group_size = 2;
  all[5].groups[0].seed = 5;
  all[6].groups[0].sampling = all[6].sampling;
  all[7].sampling.stop_token_ids = {4};
  all[8].required_weight_version = 0;
  all[9].policy = "static";
  all[10].chunk_tokens = 0;
  all[11].echo_prompts = true;
  all[12].routed_experts_from = 0;
  all[13].routed_experts_from = 1;
  for (std::size_t a = 0; a < all.size(); ++a)
    for (std::size_t b = 0; b < a; ++b)
      EXPECT_NE(hash_of(all[a]), hash_of(all[b])) << a << " and " << b;
}

TEST_F(book_test, gives_each_response_its_own_seed) {
  auto spec = spec_of("k", 3, 4);
  spec.groups[1].seed = 77;
  const auto& batch = started(spec);
  std::set<std::uint64_t> seeds;
  for (const auto& r : batch.responses)
    seeds.insert(r.seed);
  EXPECT_EQ(seeds.size(), 12u);
  EXPECT_EQ(batch.responses[2].seed, response_seed(5, 0, 2));
  EXPECT_EQ(batch.responses[6].seed, response_seed(77, 0, 2)) << "wherever the group stands";
}

TEST_F(book_test, finds_responses_of_all_batches_by_id) {
  auto& a = started(spec_of("a", 2, 3));
  auto& b = started(spec_of("b", 1, 2));
  EXPECT_EQ(book.locate({a.first_response + 5}).response, &a.responses[5]);
  EXPECT_EQ(book.locate({b.first_response}).response, &b.responses[0]);
  EXPECT_FALSE(book.locate({b.first_response + 2}));
  EXPECT_FALSE(book.locate({0}));
}

TEST_F(book_test, appends_at_the_edge_only_and_never_to_the_finished) {
  auto& batch = started(spec_of("k", 1, 1));
  EXPECT_TRUE(append(batch, 0, 0, 4));
  EXPECT_FALSE(append(batch, 0, 0, 4)) << "doubled";
  EXPECT_FALSE(append(batch, 0, 5, 4)) << "a gap";
  EXPECT_TRUE(append(batch, 0, 4, 2));
  EXPECT_EQ(batch.responses[0].tokens.size(), 6u);
  EXPECT_EQ(batch.generated_tokens, 6u);
  finish(batch, 0);
  EXPECT_FALSE(append(batch, 0, 6, 1));
  const std::vector<token_id> three(3, 1);
  const std::vector<float> two(2, 0.f);
  EXPECT_FALSE(book.append({&batch, &batch.responses[0]}, 6, three, two, two));
}

TEST_F(book_test, keeps_ids_of_experts_with_the_tokens_that_they_come_with) {
  book.experts = {2, 3, 1}; // six bytes a position
  auto spec = spec_of("k", 1, 2);
  spec.groups[0].prompt_token_ids = {1, 2, 3};
  spec.routed_experts_from = 1;
  auto& batch = started(spec);
  const auto append_with = [&](std::uint32_t position, std::size_t count, std::size_t positions) {
    const std::vector<token_id> tokens(count, 3);
    const std::vector<float> numbers(count, 0.25f);
    const std::vector<std::byte> ids(6 * positions, static_cast<std::byte>(position + 1));
    return book.append({&batch, &batch.responses[0]}, position, tokens, numbers, numbers, ids);
  };
  EXPECT_FALSE(append_with(0, 4, 0));
  EXPECT_FALSE(append_with(0, 4, 6));
  EXPECT_TRUE(append_with(0, 4, 5)) << "1 to 5 of 3 + 4 tokens, of which the last was not fed";
  EXPECT_FALSE(append_with(4, 2, 3));
  EXPECT_TRUE(append_with(4, 2, 2));
  EXPECT_EQ(batch.tokens_held, 6u + 6 * 7 / 12) << "they are counted";
  finish(batch, 0);
  finish(batch, 1); // without a token
  const auto events = book.deliveries(batch);
  ASSERT_GE(events.size(), 2u);
  const auto& first = std::get<wire::response_ready>(events[0]).experts;
  ASSERT_TRUE(first);
  EXPECT_EQ(first->start, 1u);
  EXPECT_EQ(first->layout, book.experts);
  EXPECT_EQ(first->ids, std::string(6 * 5, '\1') + std::string(6 * 2, '\5'));
  const auto& second = std::get<wire::response_ready>(events[1]).experts;
  ASSERT_TRUE(second);
  EXPECT_EQ(second->start, 0u);
  EXPECT_TRUE(second->ids.empty());
  (void)book.acknowledge(batch, 3);
  EXPECT_EQ(batch.tokens_held, 0u);
}

TEST_F(book_test, says_which_weights_made_each_token) {
  book.weight_version = 4;
  auto& batch = started(spec_of("k", 1, 3));
  ASSERT_TRUE(append(batch, 0, 0, 3));
  ASSERT_TRUE(append(batch, 0, 3, 2)); // The same weights: one span.
  book.weight_version = 6;
  ASSERT_TRUE(append(batch, 0, 5, 4));
  EXPECT_FALSE(append(batch, 0, 5, 4)) << "a chunk that comes twice begins no span";
  book.weight_version = 7; // Which makes nothing of it.
  ASSERT_TRUE(append(batch, 1, 0, 1));
  for (std::size_t i = 0; i < 3; ++i)
    finish(batch, i);
  const auto events = book.deliveries(batch);
  ASSERT_GE(events.size(), 3u);
  const auto spans = [&](std::size_t i) {
    return std::get<wire::response_ready>(events[i]).weight_versions;
  };
  EXPECT_EQ(spans(0), (std::vector<wire::weight_span>{{4, 0, 5}, {6, 5, 9}}));
  EXPECT_EQ(spans(1), (std::vector<wire::weight_span>{{7, 0, 1}}));
  EXPECT_TRUE(spans(2).empty()) << "no token, no span";
}

TEST_F(book_test, delivers_a_window_and_goes_on_when_acknowledged) {
  auto& batch = started(spec_of("k", 1, 8));
  for (std::size_t i = 0; i < 8; ++i) {
    append(batch, 7 - i, 0, 2);
    finish(batch, 7 - i);
  }
  auto sent = book.deliveries(batch);
  ASSERT_EQ(sent.size(), 5u) << "results_in_flight";
  EXPECT_EQ(std::get<wire::response_ready>(sent[0]).index, 7u) << "in order of finishing";
  EXPECT_EQ(std::get<wire::response_ready>(sent[4]).sequence, 5u);
  EXPECT_TRUE(book.deliveries(batch).empty());
  book.acknowledge(batch, 4);
  sent = book.deliveries(batch);
  ASSERT_EQ(sent.size(), 4u);
  const auto& done = std::get<wire::batch_done>(sent[3]);
  EXPECT_EQ(done.sequence, 9u);
  EXPECT_EQ(done.summary.tokens, 16u);
  EXPECT_FALSE(batch.acknowledged_fully());
  book.acknowledge(batch, 9);
  EXPECT_TRUE(batch.acknowledged_fully());
}

TEST_F(book_test, has_keys_for_each_owner) {
  batch_book all{{}};
  auto& alices = **all.submit(spec_of("k", 1, 1), 0, "alice");
  auto& bobs = **all.submit(spec_of("k", 1, 2), 0, "bob");
  EXPECT_NE(&alices, &bobs);
  EXPECT_EQ(&alices, all.submit(spec_of("k", 1, 1), 0, "alice").value());
  EXPECT_EQ(all.submit(spec_of("k", 1, 2), 0, "alice").error().code, errc::batch_conflict);
  EXPECT_EQ(all.find("k", "bob").value(), &bobs);
  EXPECT_EQ(all.find("k", "carol").error().code, errc::unknown_batch);
  EXPECT_EQ(all.find_any("k", "alice").value(), &alices);
  EXPECT_EQ(all.find_any("k", "carol").error().code, errc::batch_conflict);
  EXPECT_EQ(all.find("k").error().code, errc::batch_conflict);
  (void)all.cancel(alices, 1);
  (void)all.give_up(bobs, {errc::bad_config, "why", {}}, 1);
  all.attach(bobs, "peer", 0);
  (void)all.deliveries(bobs);
  ASSERT_FALSE(all.acknowledge(bobs, 3)) << "it had failed, so it is forgotten";
  EXPECT_EQ(all.find("k", "bob").error().code, errc::unknown_batch);
  EXPECT_EQ(all.find("k").value(), &alices) << "the only one, whoever asks without a name";
}

TEST_F(book_test, finds_what_is_nobodys_for_everybody) {
  batch_book all{{}};
  auto& nobodys = **all.submit(spec_of("k", 1, 1), 0);
  EXPECT_EQ(all.submit(spec_of("k", 1, 1), 0, "alice").value(), &nobodys);
  EXPECT_EQ(all.find("k", "bob").value(), &nobodys);
  EXPECT_EQ(all.find_any("k", "root").value(), &nobodys);
}

TEST_F(book_test, delivers_a_window_of_tokens_too_and_always_one_result) {
  book = batch_book{{.tokens_in_flight = 100}};
  auto spec = spec_of("k", 1, 6);
  spec.echo_prompts = true; // two tokens more a result
  auto& batch = started(spec);
  const std::array<std::size_t, 6> sizes{200, 48, 48, 1, 30, 30};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    append(batch, i, 0, sizes[i]);
    finish(batch, i);
  }
  EXPECT_EQ(book.deliveries(batch).size(), 1u) << "larger than the window";
  EXPECT_TRUE(book.deliveries(batch).empty());
  book.acknowledge(batch, 1);
  EXPECT_EQ(book.deliveries(batch).size(), 2u) << "50 + 50";
  book.acknowledge(batch, 2);
  EXPECT_EQ(book.deliveries(batch).size(), 2u) << "50 + 3 + 32, and 32 are too many";
  book.attach(batch, "other", 2);
  EXPECT_EQ(book.deliveries(batch).size(), 3u) << "the same window for whoever resumes";
  book.acknowledge(batch, 5);
  EXPECT_EQ(book.deliveries(batch).size(), 2u) << "the last one, and the end";
  EXPECT_EQ(batch.tokens_sent, 32u);
  book.acknowledge(batch, 7);
  EXPECT_EQ(batch.tokens_sent, 0u);
}

TEST_F(book_test, keeps_contents_until_acknowledged_and_no_longer) {
  auto& batch = started(spec_of("k", 1, 2));
  append(batch, 0, 0, 2);
  finish(batch, 0);
  book.acknowledge(batch, 1); // not sent yet: nobody can have it
  EXPECT_EQ(batch.responses[0].tokens.size(), 2u);
  ASSERT_EQ(book.deliveries(batch).size(), 1u);
  book.acknowledge(batch, 1'000);
  EXPECT_TRUE(batch.responses[0].tokens.empty());
  EXPECT_EQ(batch.acknowledged, 1u);
}

TEST_F(book_test, sends_again_to_whoever_resumes) {
  auto& batch = started(spec_of("k", 1, 4));
  for (std::size_t i = 0; i < 3; ++i)
    finish(batch, i);
  ASSERT_EQ(book.deliveries(batch).size(), 3u);
  book.attach(batch, "other", 1);
  const auto sent = book.deliveries(batch);
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_EQ(std::get<wire::response_ready>(sent[0]).sequence, 2u);
  book.attach(batch, "third", 0);
  EXPECT_EQ(book.deliveries(batch).size(), 2u) << "what was acknowledged is gone";
  book.attach(batch, "liar", 1'000);
  finish(batch, 3);
  EXPECT_EQ(book.deliveries(batch).size(), 2u) << "nobody can have what was not there";
}

TEST_F(book_test, delivers_to_nobody_when_nobody_listens) {
  auto& batch = started(spec_of("k", 1, 1));
  finish(batch, 0);
  batch.receiver.clear();
  EXPECT_TRUE(book.deliveries(batch).empty());
  EXPECT_EQ(batch.sent, 0u);
}

TEST_F(book_test, measures_makespan_and_tail) {
  const auto batch = book.submit(spec_of("k", 1, 20), 1'000'000'000);
  auto& record = **batch;
  book.start(record, 2'000'000'000);
  for (std::size_t i = 0; i < 20; ++i)
    finish(record, i, 3'000'000'000 + i * 1'000'000'000);
  const auto summary = book.summary(record);
  EXPECT_DOUBLE_EQ(summary.wall_s, 21.0);
  EXPECT_DOUBLE_EQ(summary.makespan_s, 20.0);
  EXPECT_DOUBLE_EQ(summary.tail_s, 2.0) << "since the 18th of 20";
}

TEST_F(book_test, ends_everything_that_is_cancelled) {
  auto& batch = started(spec_of("k", 2, 2));
  append(batch, 0, 0, 3);
  finish(batch, 1);
  EXPECT_EQ(book.cancel(batch, 5).size(), 3u);
  EXPECT_EQ(batch.phase, batch_phase::ended);
  const auto sent = book.deliveries(batch);
  ASSERT_EQ(sent.size(), 5u);
  const auto& partial = std::get<wire::response_ready>(sent[1]);
  EXPECT_EQ(partial.reason, wire::finish_reason::cancelled);
  EXPECT_EQ(partial.token_ids.size(), 3u);
}

TEST_F(book_test, is_bounded) {
  EXPECT_FALSE(book.submit(spec_of("large", 10, 11), 0)) << "110 responses of 100";
  for (const auto* key : {"a", "b", "c"})
    ASSERT_TRUE(book.submit(spec_of(key, 1, 10), 0));
  const auto fourth = book.submit(spec_of("d", 1, 1), 0);
  ASSERT_FALSE(fourth) << "three live ones";
  EXPECT_EQ(fourth.error().code, errc::queue_full);
  auto& a = **book.find("a");
  a.receiver = "peer";
  book.cancel(a, 0);
  ASSERT_TRUE(book.submit(spec_of("d", 1, 1), 0));
  book.cancel(**book.find("d"), 0);
  const auto fifth = book.submit(spec_of("e", 1, 1), 0);
  ASSERT_FALSE(fifth) << "four kept, none acknowledged to its end";
  while (!book.deliveries(a).empty())
    book.acknowledge(a, a.sent);
  ASSERT_TRUE(a.acknowledged_fully());
  ASSERT_TRUE(book.submit(spec_of("e", 1, 1), 0));
  EXPECT_FALSE(book.find("a")) << "the oldest acknowledged one made room";
}

TEST_F(book_test, keeps_the_results_of_a_batch_that_cannot_go_on) {
  auto& batch = started(spec_of("k", 1, 60));
  ASSERT_TRUE(append(batch, 7, 0, 3));
  finish(batch, 7);
  EXPECT_EQ(book.give_up(batch, {errc::queue_full, "no room", {}}, 5).size(), 59u);
  std::vector<wire::event> pushed;
  while (!batch.acknowledged_fully()) {
    const auto more = book.deliveries(batch);
    ASSERT_FALSE(more.empty());
    pushed.insert(pushed.end(), more.begin(), more.end());
    if (!book.acknowledge(batch, batch.sent))
      break;
  }
  ASSERT_EQ(pushed.size(), 61u);
  const auto* first = std::get_if<wire::response_ready>(&pushed.front());
  ASSERT_TRUE(first);
  EXPECT_EQ(first->index, 7u);
  EXPECT_EQ(first->token_ids.size(), 3u);
  const auto* last = std::get_if<wire::request_failed>(&pushed.back());
  ASSERT_TRUE(last);
  EXPECT_EQ(last->code, errc::queue_full);
  EXPECT_EQ(last->batch_key, "k");
  EXPECT_FALSE(book.find("k")) << "its end is acknowledged, so its key is free";
  EXPECT_TRUE(book.submit(spec_of("other", 1, 60), 0)) << "its responses count no more";
}

TEST_F(book_test, takes_no_word_for_results_that_were_never_sent) {
  auto& batch = started(spec_of("k", 2, 3));
  ASSERT_TRUE(append(batch, 0, 0, 3));
  finish(batch, 0);
  book.attach(batch, "hasty", UINT64_MAX);
  EXPECT_EQ(batch.acknowledged, 0u);
  const auto pushed = book.deliveries(batch);
  ASSERT_EQ(pushed.size(), 1u);
  EXPECT_EQ(std::get<wire::response_ready>(pushed[0]).token_ids.size(), 3u);
  book.attach(batch, "later", 1);
  EXPECT_EQ(batch.acknowledged, 1u) << "sent before, if to another";
  EXPECT_TRUE(book.deliveries(batch).empty());
}

TEST_F(book_test, drops_the_records_of_a_batch_whose_end_is_acknowledged) {
  auto& batch = started(spec_of("k", 2, 3));
  book.cancel(batch, 1);
  while (!book.deliveries(batch).empty())
    book.acknowledge(batch, batch.sent);
  ASSERT_TRUE(batch.acknowledged_fully());
  EXPECT_EQ(batch.responses.capacity() + batch.finished.capacity() + batch.spec.groups.capacity(),
            0u);
  EXPECT_FALSE(book.locate({batch.first_response}));
  EXPECT_EQ(*book.submit(spec_of("k", 2, 3), 9), &batch) << "the key is still known";
}

TEST_F(book_test, numbers_every_response_once_whatever_the_order) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    batch_book fresh{{}};
    prng rng{seed};
    auto& batch = **fresh.submit(spec_of("k", 5, 6), 0);
    batch.receiver = "peer";
    fresh.start(batch, 0);
    std::set<std::uint64_t> sequences;
    std::set<std::pair<std::uint32_t, std::uint32_t>> places;
    while (batch.phase != batch_phase::ended || !batch.acknowledged_fully()) {
      if (const auto i = rng.below(30); batch.responses[i].sequence == 0)
        fresh.finish({&batch, &batch.responses[i]}, wire::finish_reason::length, 1);
      for (const auto& event : fresh.deliveries(batch))
        if (const auto* r = std::get_if<wire::response_ready>(&event)) {
          EXPECT_TRUE(sequences.insert(r->sequence).second) << "seed " << seed;
          EXPECT_TRUE(places.insert({r->group, r->index}).second) << "seed " << seed;
        }
      if (rng.chance(30))
        fresh.acknowledge(batch, rng.below(batch.sent + 1));
      else if (batch.phase == batch_phase::ended)
        fresh.acknowledge(batch, batch.sent);
    }
    EXPECT_EQ(sequences.size(), 30u) << "seed " << seed;
    EXPECT_EQ(*sequences.rbegin(), 30u) << "seed " << seed;
  }
}

TEST(batch_tally, shares_out_what_workers_did) {
  batch_tally tally;
  engine_stats at_start;
  at_start.busy_ns = 1'000'000'000;
  at_start.preemptions = 4;
  tally.join({1}, "a", at_start, 0);
  tally.join({2}, "b", {}, 5'000'000'000); // came in the middle
  auto at_end = at_start;
  at_end.busy_ns += 5'000'000'000;
  at_end.preemptions += 2;
  at_end.recomputed_tokens = 30;
  tally.update({1}, at_end);
  engine_stats b;
  b.busy_ns = 5'000'000'000;
  tally.update({2}, b);
  tally.count_chunk({1}, 100);
  tally.count_chunk({2}, 50);
  tally.count_migration({2}, 4'096);
  wire::batch_summary out;
  tally.summarise(0, 10'000'000'000, out);
  ASSERT_EQ(out.workers.size(), 2u);
  EXPECT_EQ(out.chunks, 2u);
  EXPECT_EQ(out.migrations, 1u);
  EXPECT_EQ(out.migrated_bytes, 4'096u);
  EXPECT_EQ(out.preemptions, 2u);
  EXPECT_EQ(out.recomputed_tokens, 30u);
  EXPECT_DOUBLE_EQ(out.workers[0].idle_fraction, 0.5);
  EXPECT_DOUBLE_EQ(out.workers[0].tokens_per_s, 10.0);
  EXPECT_DOUBLE_EQ(out.workers[1].idle_fraction, 0.0);
  EXPECT_DOUBLE_EQ(out.worker_idle_fraction, 1.0 - 10.0 / 15.0);
}

} // namespace
} // namespace rollcast
