// Goal: a journal that is opened again knows what was written, bit for bit, and what it is to know
// is defined once more, in memory.
// Method: random histories of records (seeds are printed), written to a journal that is closed and
// opened at random places, against the fold of the same records; then each kind of record by hand.

#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>

#include <chrono>

namespace rollcast::journal {
namespace {

class journal_image : public testing::Test {
protected:
  journal::opened open() {
    auto opened = journal::open({.path = (where_ / "journal.db").string(), .gather = {}});
    EXPECT_TRUE(opened) << (opened ? "" : opened.error().detail);
    return opened ? std::move(*opened) : journal::opened{};
  }
  image written_again(const std::vector<record>& records) {
    {
      auto all = open();
      for (const auto& r : records)
        all.keeper->write(r);
    }
    return open().found;
  }
  temporary_directory where_;
};

TEST_F(journal_image, equals_the_fold_of_any_history) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const temporary_directory where;
    const auto path = (where / "journal.db").string();
    prng rng{seed};
    history h{seed};
    for (std::uint64_t part = 1; part <= 8; ++part) {
      auto all = journal::open({.path = path, .gather = std::chrono::milliseconds{rng.below(2)}});
      ASSERT_TRUE(all) << all.error().detail;
      ASSERT_EQ(text_of(all->found), text_of(h.known())) << "after " << h.written() << " records";
      EXPECT_EQ(all->found.generation, part);
      for (auto left = rng.below(600); left > 0; --left)
        all->keeper->write(h.next());
    }
    EXPECT_GT(h.known().next_batch, 3u) << "the histories come to nothing";
  }
}

TEST_F(journal_image, keeps_every_field_of_a_batch) {
  const auto spec = small_spec("k", 2);
  spec->force_migration = spec->echo_prompts = true;
  spec->policy = "divided";
  spec->chunk_tokens = 0;
  spec->required_weight_version = ~std::uint64_t{0};
  spec->routed_experts_from = 0;
  const auto found = written_again({batch_submitted{{4}, spec, 11, 6}});
  ASSERT_EQ(found.batches.size(), 1u);
  const auto& batch = found.batches[0];
  EXPECT_EQ(batch.spec, *spec);
  EXPECT_EQ(batch.id, batch_id{4});
  EXPECT_EQ(batch.first_response, 11u);
  EXPECT_EQ(batch.first_group, 6u);
  EXPECT_EQ(batch.groups, 1u);
  EXPECT_EQ(batch.size, 2u);
  EXPECT_EQ(batch.responses.size(), 2u);
  EXPECT_FALSE(batch.started);
  EXPECT_FALSE(batch.ended);
  EXPECT_EQ(found.next_batch, 5u);
  EXPECT_EQ(found.next_response, 13u);
  EXPECT_EQ(found.next_group, 7u);
}

TEST_F(journal_image, keeps_a_batch_that_no_message_could_carry) {
  // What each group inherits is filled in, so the stored form can be larger than any message.
  auto spec = small_spec("k", 1);
  wire::sampling_params own = spec->sampling;
  own.stop_token_ids.assign(256, 0x7fffffff);
  spec->groups[0].sampling = own;
  spec->groups.resize(60'000, spec->groups[0]);
  const auto found = written_again({batch_submitted{{1}, spec, 1, 1}});
  ASSERT_EQ(found.batches.size(), 1u);
  EXPECT_EQ(found.batches[0].spec, *spec);
}

TEST_F(journal_image, keeps_all_of_a_summary) {
  batch_ended end{.id = {1}, .summary = {}};
  auto& s = end.summary;
  s = {.responses = 1,
       .tokens = 2,
       .wall_s = 0.1,
       .tokens_per_s = 1.0 / 3,
       .makespan_s = 5,
       .tail_s = 6,
       .worker_idle_fraction = 0.7,
       .chunks = 8,
       .migrations = 9,
       .migrated_bytes = 10,
       .recomputed_tokens = 11,
       .preemptions = 12,
       .draft_tokens = 13,
       .accepted_tokens = 14,
       .mean_acceptance_length = 1.5,
       .numerics_profile = "p",
       .policy = "q",
       .speculate = "r",
       .workers = {}};
  s.workers.push_back({.worker = {3},
                       .name = "n",
                       .tokens = 4,
                       .tokens_per_s = 0.3,
                       .busy_s = 2,
                       .idle_fraction = 0.25,
                       .chunks = 5,
                       .migrations = 6,
                       .migrated_bytes = 7,
                       .recomputed_tokens = 8,
                       .preemptions = 9,
                       .draft_tokens = 10,
                       .accepted_tokens = 11,
                       .mean_acceptance_length = 2.5});
  const auto found =
    written_again({batch_submitted{{1}, small_spec("k", 1), 1, 1}, batch_started{{1}, "p", 3},
                   response_finished{{1}, 0, wire::finish_reason::length}, end});
  ASSERT_EQ(found.batches.size(), 1u);
  ASSERT_TRUE(found.batches[0].ended);
  EXPECT_EQ(found.batches[0].ended->summary, s);
  EXPECT_FALSE(found.batches[0].failure);
}

TEST_F(journal_image, stamps_when_things_were_written) {
  const auto now = [] {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::system_clock::now().time_since_epoch())
                                        .count());
  };
  const auto before = now();
  const auto found =
    written_again({batch_submitted{{1}, small_spec("a", 1), 1, 1}, batch_started{{1}, "p", 3},
                   response_finished{{1}, 0, wire::finish_reason::stop}, batch_ended{{1}, {}},
                   batch_submitted{{2}, small_spec("b", 1), 2, 2}});
  ASSERT_EQ(found.batches.size(), 2u);
  const auto& ended = found.batches[0];
  EXPECT_LE(before, ended.submitted_unix_ns);
  EXPECT_LE(ended.submitted_unix_ns, ended.started_unix_ns);
  EXPECT_LE(ended.started_unix_ns, ended.ended_unix_ns);
  EXPECT_LE(ended.ended_unix_ns, now());
  EXPECT_EQ(found.batches[1].started_unix_ns, 0u);
  EXPECT_EQ(found.batches[1].ended_unix_ns, 0u);
}

TEST_F(journal_image, an_identity_without_a_model_is_none) {
  const cluster_identity who{.model = "m",
                             .numerics = "n",
                             .numerics_hash = {1, 2},
                             .vocabulary = 3,
                             .context_max = 4,
                             .eos_token_ids = {}};
  EXPECT_EQ(written_again({who}).identity, who);
  EXPECT_FALSE(written_again({cluster_identity{}}).identity);
}

TEST_F(journal_image, an_acknowledged_result_is_empty_and_the_others_stay) {
  const batch_id b{1};
  const auto found =
    written_again({batch_submitted{b, small_spec("k", 2), 1, 1}, batch_started{b, "p", 1},
                   edge_of(b, 0, 0, 5), edge_of(b, 1, 0, 3), edge_of(b, 1, 3, 4),
                   response_finished{b, 1, wire::finish_reason::stop}, results_acknowledged{b, 1}});
  ASSERT_EQ(found.batches.size(), 1u);
  const auto& all = found.batches[0].responses;
  EXPECT_EQ(all[0].tokens.size(), 5u);
  EXPECT_EQ(all[0].sequence, 0u);
  EXPECT_TRUE(all[1].tokens.empty());
  EXPECT_TRUE(all[1].kept_masses.empty());
  EXPECT_EQ(all[1].sequence, 1u);
  EXPECT_EQ(found.batches[0].acknowledged, 1u);
}

} // namespace
} // namespace rollcast::journal
