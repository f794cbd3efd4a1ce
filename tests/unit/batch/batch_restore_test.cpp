// Goal: a book that is made again from what its journal was told is the same book: same ids, same
// deliveries, same refusals, the same bytes at the end of a batch; and a journal cut anywhere gives
// a book that can go on without a wrong, doubled or missing token.
// Method: random histories, told to a book that lives on and to one that is made anew from its
// records again and again. Records are kept in memory; times are made up.

#include "cluster/batch/batch_book.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/prng.hpp"
#include "tests/support/journal_fold.hpp"

#include <gtest/gtest.h>

#include <map>

namespace rollcast::test {
namespace {

constexpr batch_limits small{
  .live_batches = 4, .kept_batches = 6, .responses = 60, .tokens = 400, .results_in_flight = 3};
const model_ends model{{9}, 1'000};

wire::submit_batch spec_of(const std::string& key, std::uint32_t groups, std::uint32_t size) {
  wire::submit_batch spec;
  spec.batch_key = key;
  spec.seed = 5;
  spec.sampling.max_new_tokens = 40;
  for (std::uint32_t g = 0; g < groups; ++g) {
    auto& group = spec.groups.emplace_back();
    group.id = "g" + std::to_string(g);
    group.prompt_token_ids = {1, 2};
    group.group_size = size;
  }
  if (groups > 1)
    spec.groups[1].sampling = spec.sampling;
  if (groups > 1)
    spec.groups[1].sampling->top_k = 3;
  return spec;
}

/// Sets aside what an event cannot have in common with one of a book that was never made anew.
wire::event plain(wire::event e) {
  if (auto* done = std::get_if<wire::batch_done>(&e))
    done->summary.tail_s = done->summary.tokens_per_s = 0, done->summary.tokens = 0;
  return e;
}

/// Two books that are told the same; one of them dies and comes back.
class twins {
public:
  explicit twins(std::uint64_t seed) : random_(seed) {
    for (auto* book : {&lasting_, &*mortal_}) {
      book->numerics_profile = "cpu-f32-v1";
      book->weight_version = 3;
      book->experts = experts;
    }
  }

  void step() {
    now_ += 1'000;
    log_.unix_ns = now_ + epoch;
    switch (random_.below(12)) {
      case 0: return submit();
      case 1: return start();
      case 2: return random_.below(8) == 0 ? cancel() : finish();
      case 3: return random_.below(8) == 0 ? give_up() : finish();
      case 4: return finish();
      case 5:
      case 6: return acknowledge();
      case 7: return random_.below(3) == 0 ? die() : deliver();
      case 8: return change_weights();
      default: return append();
    }
  }

private:
  static constexpr std::uint64_t epoch = 1'700'000'000'000'000'000;
  static constexpr expert_layout experts{3, 2, 2};

  template <class F>
  void both(F f) {
    const auto a = f(lasting_);
    const auto b = f(*mortal_);
    EXPECT_EQ(a, b);
  }

  std::uint32_t draw(std::uint32_t most) {
    return 1 + static_cast<std::uint32_t>(random_.below(most));
  }
  std::string draw_key() { return "k" + std::to_string(random_.below(9)); }

  /// Does it to a batch with that key in both books, if there is one.
  template <class F>
  void with_batch(const std::string& key, F f) {
    const auto a = lasting_.find(key);
    const auto b = mortal_->find(key);
    ASSERT_EQ(a.has_value(), b.has_value());
    if (!a) {
      EXPECT_EQ(a.error().detail, b.error().detail);
      return;
    }
    ASSERT_EQ((*a)->phase, (*b)->phase);
    f(lasting_, **a);
    f(*mortal_, **b);
  }

  void submit() {
    auto spec = spec_of(draw_key(), draw(3), draw(4));
    if (random_.below(2) == 0)
      spec.routed_experts_from = draw(9) - 1;
    both([&](batch_book& book) {
      const auto made = book.submit(spec, now_);
      if (!made)
        return made.error().detail;
      if ((*made)->receiver.empty())
        (void)book.attach(**made, "peer", 0);
      return std::to_string((*made)->id.value) + " " + std::to_string((*made)->first_response) + " "
             + std::to_string((*made)->first_group) + " " + (*made)->numerics_profile;
    });
  }

  void start() {
    with_batch(draw_key(), [&](batch_book& book, batch_record& batch) {
      if (batch.phase == batch_phase::queued)
        book.start(batch, now_);
    });
  }

  void append() {
    const auto pick = random_.next();
    std::vector<token_id> tokens(1 + random_.below(3));
    for (auto& token : tokens)
      token = static_cast<token_id>(random_.below(9)); // none of them is the end
    const std::vector<float> logprobs(tokens.size(), -0.25f);
    const std::vector<float> masses(tokens.size(), random_.below(2) == 0 ? 1.0f : 0.5f);
    with_batch(draw_key(), [&](batch_book& book, batch_record& batch) {
      if (batch.phase != batch_phase::running)
        return;
      auto& r = batch.responses[pick % batch.size];
      if (r.tokens.size() + tokens.size() >= 40)
        return;
      const std::vector<std::byte> ids(batch_book::expert_bytes({&batch, &r}, tokens.size()),
                                       static_cast<std::byte>(pick));
      (void)book.append({&batch, &r}, static_cast<std::uint32_t>(r.tokens.size()), tokens, logprobs,
                        masses, ids);
    });
  }

  void finish() {
    const auto pick = random_.next();
    with_batch(draw_key(), [&](batch_book& book, batch_record& batch) {
      if (batch.phase != batch_phase::running)
        return;
      auto& r = batch.responses[pick % batch.size];
      if (r.sequence == 0)
        book.finish({&batch, &r}, wire::finish_reason::stop, now_);
    });
  }

  void cancel() {
    with_batch(draw_key(), [&](batch_book& book, batch_record& batch) {
      if (batch.phase != batch_phase::ended)
        (void)book.cancel(batch, now_);
    });
  }

  void give_up() {
    with_batch(draw_key(), [&](batch_book& book, batch_record& batch) {
      if (batch.phase != batch_phase::ended)
        (void)book.give_up(batch, {errc::peer_lost, "no luck", {}}, now_);
    });
  }

  void deliver() {
    std::vector<std::vector<wire::event>> got;
    const auto key = draw_key();
    with_batch(key, [&](batch_book& book, batch_record& batch) {
      got.push_back(book.deliveries(batch));
      last_[key] = std::max(last_[key], batch.sent);
    });
    if (got.empty())
      return;
    ASSERT_EQ(got[0].size(), got[1].size());
    for (std::size_t i = 0; i < got[0].size(); ++i)
      EXPECT_EQ(plain(got[0][i]), plain(got[1][i]));
  }

  void acknowledge() {
    const auto key = draw_key();
    const auto share = random_.below(4);
    std::optional<std::uint64_t> until;
    std::vector<bool> kept;
    with_batch(key, [&](batch_book& book, batch_record& batch) {
      if (!until)
        until = share == 0 ? batch.sent / 2 : batch.sent;
      kept.push_back(book.acknowledge(batch, *until));
    });
    if (kept.empty())
      return;
    EXPECT_EQ(kept[0], kept[1]);
  }

  void change_weights() {
    ++lasting_.weight_version;
    ++mortal_->weight_version;
  }

  /// The mortal one is made anew; whoever was attached comes back and says what it has.
  void die() {
    const auto version = mortal_->weight_version;
    std::map<batch_id, wire::batch_summary> summaries;
    for (const auto& [id, batch] : mortal_->batches())
      summaries.emplace(id, mortal_->summary(batch));
    mortal_.emplace(small, &log_);
    mortal_->numerics_profile = "cpu-f32-v1";
    mortal_->weight_version = version;
    mortal_->experts = experts;
    const auto before = log_.all.size();
    mortal_->restore(log_.image(), model, {now_, now_ + epoch});
    EXPECT_EQ(log_.all.size(), before) << "nothing was torn";
    ASSERT_EQ(mortal_->batches().size(), lasting_.batches().size());
    for (auto& [id, batch] : lasting_.batches()) {
      auto& again = mortal_->batches().at(id);
      EXPECT_EQ(again.submitted_ns, batch.submitted_ns);
      EXPECT_EQ(again.live_groups, batch.live_groups);
      EXPECT_EQ(again.weight_version, batch.weight_version);
      EXPECT_EQ(again.acknowledged, batch.acknowledged);
      EXPECT_TRUE(again.receiver.empty());
      if (batch.phase == batch_phase::ended) {
        EXPECT_EQ(mortal_->summary(again), summaries.at(id)) << "to the last bit";
      }
      const auto had = batch.sent;
      ASSERT_TRUE(mortal_->attach(again, "peer", 0));
      (void)lasting_.attach(batch, "peer", 0);
      EXPECT_EQ(again.sent, batch.sent);
      EXPECT_LE(again.sent, had);
    }
  }

  prng random_;
  record_log log_;
  batch_book lasting_{small};
  std::optional<batch_book> mortal_{std::in_place, small, &log_};
  std::map<std::string, std::uint64_t> last_;
  std::uint64_t now_ = 1'000'000;
};

TEST(batch_restore, makes_the_same_book_of_any_history) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    twins t{seed};
    for (int i = 0; i < 600 && !testing::Test::HasFailure(); ++i)
      t.step();
  }
}

/// A small batch told to a log: two responses stop, one reaches its limit, the last is cancelled
/// with the rest.
struct torn : testing::Test {
  torn() {
    auto spec = spec_of("k", 2, 2);
    spec.sampling.max_new_tokens = 4;
    spec.groups[1].sampling->max_new_tokens = 4;
    book.numerics_profile = "cpu-f32-v1";
    book.weight_version = 3;
    batch = *book.submit(spec, 1);
    book.start(*batch, 1);
  }

  void run_all() {
    for (std::size_t i = 0; i < 4; ++i) {
      append(i, {1, 2});
      append(i, i == 3 ? std::vector<token_id>{3, 4} : std::vector<token_id>{9});
      finish(i, i == 3 ? wire::finish_reason::length : wire::finish_reason::stop);
    }
  }
  void append(std::size_t i, const std::vector<token_id>& tokens) {
    const std::vector<float> numbers(tokens.size(), 0.5f);
    auto& r = batch->responses[i];
    ASSERT_TRUE(book.append({batch, &r}, static_cast<std::uint32_t>(r.tokens.size()), tokens,
                            numbers, numbers));
  }
  void finish(std::size_t i, wire::finish_reason reason) {
    book.finish({batch, &batch->responses[i]}, reason, 2);
  }

  record_log log;
  batch_book book{{}, &log};
  batch_record* batch = nullptr;
};

TEST_F(torn, finishes_what_the_last_edge_had_ended_and_no_more) {
  run_all();
  for (std::size_t count = 1; count <= log.all.size(); ++count) {
    SCOPED_TRACE(count);
    record_log more;
    batch_book again{{}, &more};
    again.restore(log.image_of(count), model, {9, 9});
    auto& found = *again.find("k").value();
    for (const auto& r : found.responses) {
      const bool over = !r.tokens.empty() && (r.tokens.back() == 9 || r.tokens.size() == 4);
      EXPECT_EQ(r.sequence != 0, over);
      if (over) {
        EXPECT_EQ(r.reason,
                  r.tokens.size() == 4 ? wire::finish_reason::length : wire::finish_reason::stop);
      }
    }
    EXPECT_EQ(found.phase == batch_phase::ended, found.finished_count == 4);
    ASSERT_TRUE(again.attach(found, "peer", 0));
    EXPECT_EQ(again.deliveries(found).size(),
              found.finished_count + (found.finished_count == 4 ? 1 : 0));
    // What was made up for is in the journal too: a second death changes nothing.
    record_log whole = log;
    whole.all.resize(count);
    whole.all.insert(whole.all.end(), more.all.begin(), more.all.end());
    record_log nothing;
    batch_book third{{}, &nothing};
    third.restore(whole.image(), model, {9, 9});
    EXPECT_TRUE(nothing.all.empty());
  }
}

TEST_F(torn, cancels_the_whole_batch_or_none_of_it) {
  append(0, {1});
  const auto before = log.all.size();
  (void)book.cancel(*batch, 5);
  ASSERT_EQ(log.all.size(), before + 5);
  for (std::size_t count = before; count <= log.all.size(); ++count) {
    record_log more;
    batch_book again{{}, &more};
    again.restore(log.image_of(count), model, {9, 9});
    const auto& found = *again.find("k").value();
    EXPECT_EQ(found.finished_count, count == before ? 0u : 4u) << count;
  }
}

// Found by protocol_sim_test, seed 801: the controller was told BatchDone, with responses cancelled
// that nobody had cancelled.
TEST_F(torn, tells_why_a_batch_could_not_go_on_wherever_it_is_cut_off) {
  append(0, {1});
  const auto before = log.all.size();
  (void)book.give_up(*batch, {errc::peer_lost, "no luck", {}}, 5);
  for (std::size_t count = before + 1; count <= log.all.size(); ++count) {
    batch_book again{{}};
    again.restore(log.image_of(count), model, {9, 9});
    const auto& found = *again.find("k").value();
    EXPECT_EQ(found.finished_count, 4u) << count;
    ASSERT_TRUE(found.failure) << count;
    EXPECT_EQ(found.failure->code, errc::peer_lost);
    EXPECT_EQ(found.failure->detail, "no luck");
  }
}

TEST_F(torn, forgets_a_failed_batch_whose_end_is_acknowledged) {
  book.numerics_profile = "other";
  (void)book.give_up(*batch, {errc::peer_lost, "no luck", {}}, 5);
  ASSERT_TRUE(book.attach(*batch, "peer", 0));
  EXPECT_EQ(book.deliveries(*batch).size(), 5u);
  EXPECT_FALSE(book.acknowledge(*batch, 5));
  ASSERT_TRUE(std::holds_alternative<journal::batch_forgotten>(log.all.back().what));
  record_log more;
  batch_book again{{}, &more};
  again.restore(log.image_of(log.all.size() - 1), model, {9, 9});
  EXPECT_FALSE(again.find("k"));
  ASSERT_EQ(more.all.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<journal::batch_forgotten>(more.all[0].what));
}

TEST_F(torn, survives_clocks_that_jump) {
  run_all();
  for (auto& entry : log.all)
    entry.unix_ns = 5'000;
  for (const std::uint64_t unix_ns : {0ull, 4'000ull, 5'000ull, 1'000'000'000'000ull}) {
    batch_book again{{}};
    again.restore(log.image_of(3), model, {100, unix_ns});
    auto& found = *again.find("k").value();
    EXPECT_GT(found.submitted_ns, 0u);
    EXPECT_LE(found.submitted_ns, 100u);
    EXPECT_LE(found.submitted_ns, found.started_ns);
    (void)again.cancel(found, 200);
    EXPECT_GE(again.summary(found).wall_s, 0.0);
    EXPECT_LT(again.summary(found).wall_s, 1e-6);
  }
}

TEST_F(torn, lets_a_controller_go_on_from_what_it_has) {
  run_all();
  batch_book again{{}};
  again.restore(log.image(), model, {9, 9});
  auto& found = *again.find("k").value();
  ASSERT_TRUE(again.attach(found, "other", 3)) << "it got three, and acknowledged none";
  const auto rest = again.deliveries(found);
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_EQ(std::get<wire::response_ready>(rest[0]).sequence, 4u);
  EXPECT_EQ(std::get<wire::batch_done>(rest[1]).sequence, 5u);
}

} // namespace
} // namespace rollcast::test
