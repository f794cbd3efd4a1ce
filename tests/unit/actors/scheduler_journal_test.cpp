// Goal: a scheduler that dies at any moment and is started from its journal ends every batch with
// the results of an undisturbed run, each delivered once; it keeps identity and epoch, tells nobody
// what is not on disk, and flips no worker before the flip is.
// Method: CAF's test coordinator, workers that generate by arithmetic, a journal in memory of which
// a death leaves only what was committed, and a controller that resumes by sequence number. Deaths
// and commits are drawn from seeds.

#include "actors/bytes.hpp"
#include "actors/durable_link.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler.hpp"
#include "engine/base/prng.hpp"
#include "tests/support/journal_fold.hpp"
#include "tests/unit/actors/deterministic_system.hpp"

#include <map>
#include <set>
#include <vector>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

constexpr token_id eos = 0;

worker_hello plain_hello() {
  worker_hello hello;
  hello.name = "reckoner";
  hello.host = "here";
  hello.data_endpoint = "tcp://127.0.0.1:1";
  hello.numerics = "cpu-f32-v1";
  hello.weights_hash = {1, 0};
  hello.kv_blocks = 64;
  hello.block_tokens = 16;
  hello.slots = 4;
  hello.kv_bytes_per_token = 8;
  hello.context_max = 1'000;
  hello.vocabulary = 100;
  const std::vector<token_id> ids{eos};
  hello.eos_token_ids = to_bytes(std::span<const token_id>{ids});
  return hello;
}

/// What a worker was told.
struct worker_log {
  worker_id id;
  errc refused = errc::ok;
  bool admitted = false;
  bool mute = false; ///< Reports nothing.
  std::size_t chunks = 0;
  std::vector<std::uint64_t> flips;
  std::vector<std::uint64_t> prepared; ///< Update numbers.
  std::vector<std::string> upstreams;
};

/// A worker whose tokens are a function of seed and position, and so of nothing else.
struct reckoner_state {
  reckoner_state() = default; // no aggregate, which CAF would make of a pointer
  registry_actor scheduler;
  worker_hello hello;
};
using reckoner_pointer = decode_worker_actor::stateful_pointer<reckoner_state>;

chunk_outcome reckon(const chunk_assignment& a, std::uint64_t epoch) {
  chunk_outcome o;
  o.worker = a.worker;
  o.epoch = epoch;
  o.response = a.response;
  o.attempt = a.attempt;
  const auto size = static_cast<std::uint32_t>(a.tokens.size() / sizeof(token_id));
  o.position = size - a.prompt_tokens;
  std::vector<token_id> tokens;
  std::vector<float> logprobs;
  auto why = chunk_end::budget;
  while (tokens.size() < a.generate_max) {
    const auto position = o.position + tokens.size();
    prng dice{a.sampling.seed ^ (position << 32)};
    tokens.push_back(static_cast<token_id>(dice.below(30)));
    logprobs.push_back(-static_cast<float>(dice.below(1'000)) / 64);
    if (tokens.back() == eos) {
      why = chunk_end::stop;
      break;
    }
    if (position + 1 == a.sampling.max_new_tokens) {
      why = chunk_end::length;
      break;
    }
  }
  o.tokens = to_bytes(std::span<const token_id>{tokens});
  o.logprobs = to_bytes(std::span<const float>{logprobs});
  o.why = static_cast<std::uint8_t>(why);
  o.kv_parked = why == chunk_end::budget;
  return o;
}

decode_worker_actor::behavior_type reckoner(reckoner_pointer self, worker_log* log,
                                            worker_hello hello) {
  self->state.hello = std::move(hello);
  return {
    [log, self](atom::decode, const chunk_assignment& a) {
      if (a.worker != log->id)
        return self->send(self->state.scheduler, atom::failed_v, a.worker,
                          std::string{"another incarnation"});
      ++log->chunks;
      if (!log->mute)
        self->send(self->state.scheduler, atom::report_v,
                   reckon(a, self->state.hello.weight_epoch));
    },
    [](atom::release, worker_id, response_id, std::uint32_t) {},
    [](atom::spill, worker_id, response_id, std::uint32_t) {},
    [](atom::gone, worker_id) {},
    [](atom::gone, group_id) {},
    [self, log](atom::join, const registry_actor& scheduler) {
      self->state.scheduler = scheduler;
      log->admitted = false;
      self->request(scheduler, 5s, atom::hello_v, self->state.hello)
        .then([log](worker_id id) { log->id = id; },
              [log](const caf::error& why) { log->refused = code_of(why); });
    },
    [](atom::drain) {},
    [](atom::cut, worker_id, response_id, std::uint32_t) {},
    [](atom::cut, worker_id) {},
    [log](atom::admit, worker_id) { log->admitted = true; },
    [log](atom::prepare, const weight_order& order) { log->prepared.push_back(order.update); },
    [](atom::redirect, worker_id, std::uint64_t, const std::string&) {},
    [](atom::cancel, worker_id, std::uint64_t) {},
    [log](atom::flip, worker_id, std::uint64_t, std::uint64_t epoch, bool) {
      log->flips.push_back(epoch);
    },
    [](atom::score, const score_order&) { return std::string{}; },
    [](const weights_pulled&) {},
    [](const weights_packed&) {},
    [](atom::step) {},
    [](caf::tick_atom) {},
    [](const export_query&) {},
    [](const pull_outcome&) {},
  };
}

/// Collects what a controller gets, by the rules of a controller.
struct collector final : controller_link {
  void send(const std::string& peer, wire::event_envelope what) override {
    all.push_back(what.body);
    if (peer != current)
      return; // it lost that connection
    if (const auto* r = std::get_if<wire::response_ready>(&what.body)) {
      if (r->sequence <= last)
        return;
      EXPECT_EQ(r->sequence, last + 1) << "a hole";
      last = r->sequence;
      const auto place = std::pair{r->group, r->index};
      EXPECT_FALSE(results.contains(place)) << "twice";
      results.emplace(place, *r);
    } else if (const auto* d = std::get_if<wire::batch_done>(&what.body)) {
      EXPECT_EQ(d->sequence, last + 1);
      done = *d;
    } else if (const auto* f = std::get_if<wire::request_failed>(&what.body)) {
      failures.push_back(f->code);
    }
  }

  std::string current;
  std::uint64_t last = 0;
  std::map<std::pair<std::uint32_t, std::uint32_t>, wire::response_ready> results;
  std::optional<wire::batch_done> done;
  std::vector<errc> failures;
  std::vector<wire::event> all;
};

struct scheduler_journal_test : deterministic_system {
  /// Starts the scheduler from what is on disk.
  void start() {
    log.all.resize(durable);
    auto access = std::make_shared<journal_access>();
    access->sink = std::shared_ptr<journal::sink>{&log, [](auto*) {}};
    access->written = [this] { return log.all.size(); };
    access->durable = [this] { return durable; };
    access->health = [this] { return health; };
    access->found = std::make_shared<journal::image>(log.image_of(durable, ++generation));
    link = std::make_shared<durable_link>(controller, access->written, access->durable);
    scheduler_parts parts{link, std::make_shared<scheduler_metrics>("test"),
                          std::make_shared<scheduler_pulse>()};
    parts.journal = access;
    if (with_weights) {
      auto exchange = weight_exchange::open({});
      ASSERT_TRUE(exchange) << exchange.error().detail;
      parts.weights = std::make_shared<weight_store>(
        std::move(*exchange), 0, [](const std::function<void()>& work) { work(); });
    }
    sut = sys.spawn(scheduler, parts, options);
    controller->current = "peer " + std::to_string(generation);
  }

  /// The disk has everything that was written.
  void commit() {
    durable = log.all.size();
    link->committed();
    caf::anon_send(sut, atom::durable_v);
  }

  void kill() {
    caf::anon_send_exit(sut, caf::exit_reason::kill);
    settle();
  }

  void join(const decode_worker_actor& worker) {
    self->send(worker, atom::join_v, registry_actor{sut});
  }

  void ask(wire::request body) {
    auto envelope = std::make_shared<wire::request_envelope>();
    envelope->request_id = ++requests;
    envelope->body = std::move(body);
    self->send(sut, controller_request{controller->current, envelope});
  }

  void run_steps(std::uint64_t count) {
    for (; count > 0; --count)
      (void)sched.try_run_once();
  }

  ~scheduler_journal_test() override { kill(); } // it writes to the log, which ends first

  scheduler_options options;
  bool with_weights = false;
  record_log log;
  std::uint64_t durable = 0;
  std::uint64_t generation = 0;
  journal::journal_health health;
  std::shared_ptr<collector> controller = std::make_shared<collector>();
  std::shared_ptr<durable_link> link;
  scheduler_actor sut;
  std::uint64_t requests = 0;
};

wire::submit_batch sample() {
  wire::submit_batch batch;
  batch.batch_key = "b";
  batch.seed = 11;
  batch.sampling.max_new_tokens = 60;
  batch.chunk_tokens = 7;
  for (int g = 0; g < 4; ++g) {
    auto& group = batch.groups.emplace_back();
    group.prompt_token_ids = {1, 2, 3 + g};
    group.group_size = 3;
  }
  return batch;
}

/// The results without what an interruption may change: their order.
auto plain(std::map<std::pair<std::uint32_t, std::uint32_t>, wire::response_ready> results) {
  for (auto& [place, r] : results)
    r.sequence = 0;
  return results;
}

TEST_F(scheduler_journal_test, dies_anywhere_and_gives_each_result_once_as_if_it_had_lived) {
  worker_log w1;
  worker_log w2;
  const auto one = spawn(reckoner, &w1, plain_hello());
  const auto two = spawn(reckoner, &w2, plain_hello());
  // The truth, without a death.
  start();
  join(one);
  settle();
  ask(sample());
  for (int i = 0; i < 3; ++i) {
    settle();
    commit();
  }
  ASSERT_TRUE(controller->done);
  const auto truth = plain(controller->results);
  ASSERT_EQ(truth.size(), 12u);
  kill();
  std::uint64_t deaths = 0;
  std::uint64_t from_edges = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    prng random{seed};
    *controller = {};
    log.all.clear();
    durable = generation = 0;
    start();
    join(one);
    ask(sample());
    for (int turn = 0; turn < 2'000 && !controller->done; ++turn) {
      run_steps(random.below(6));
      if (random.chance(40))
        commit();
      if (random.chance(20) && controller->last > 0)
        ask(wire::ack_results{"b", controller->last});
      if (!random.chance(4) || deaths > 3 * seed)
        continue;
      ++deaths;
      kill();
      start();
      settle();
      for (const auto& batch : log.image_of(durable).batches)
        for (const auto& r : batch.responses)
          from_edges += r.sequence == 0 && !r.tokens.empty() ? 1 : 0;
      join(random.chance(50) ? one : two);
      if (random.chance(30))
        join(two);
      ask(wire::resume_results{"b", controller->last});
      settle();
      if (!controller->failures.empty()) { // the submission was not on disk
        EXPECT_EQ(controller->failures.back(), errc::unknown_batch);
        EXPECT_EQ(controller->last, 0u) << "it was told of a batch that is lost";
        controller->failures.clear();
        ask(sample());
      }
    }
    commit();
    ASSERT_TRUE(controller->done);
    EXPECT_EQ(plain(controller->results), truth);
    kill();
  }
  EXPECT_GT(deaths, 60u);
  EXPECT_GT(from_edges, 20u) << "too few deaths in the middle of a response";
}

TEST_F(scheduler_journal_test, says_nothing_before_it_is_on_disk) {
  worker_log w;
  start();
  join(spawn(reckoner, &w, plain_hello()));
  settle();
  ask(sample());
  ask(wire::get_status{});
  ask(wire::rollback_weights{});
  settle();
  ASSERT_EQ(controller->all.size(), 2u) << "a status and a refusal wait for nothing";
  ask(wire::resume_results{"nobody", 0}); // a restart may bring back what was forgotten
  settle();
  ASSERT_EQ(controller->all.size(), 2u) << "that a batch is not known may be news, too";
  EXPECT_GT(link->waiting(), 0u);
  commit();
  EXPECT_GT(controller->results.size(), 0u);
  EXPECT_TRUE(std::holds_alternative<wire::batch_accepted>(controller->all[2]));
  EXPECT_EQ(controller->failures, (std::vector{errc::unimplemented, errc::unknown_batch}));
  EXPECT_EQ(link->waiting(), 0u);
}

struct counting_link final : controller_link {
  void send(const std::string&, wire::event_envelope) override { ++sent; }
  std::size_t sent = 0;
};

TEST(durable_link, holds_results_up_to_a_bound_and_answers_beyond_it) {
  const auto to = std::make_shared<counting_link>();
  std::uint64_t durable = 0;
  durable_link link{to, [] { return 1u; }, [&] { return durable; }};
  wire::response_ready large;
  large.token_ids.resize(1u << 20);
  large.logprobs.resize(1u << 20);
  for (int i = 0; i < 100; ++i)
    link.send("peer", {0, large}); // 8 MiB each
  const auto held = link.waiting();
  EXPECT_GT(held, 20u);
  EXPECT_LT(held, 40u);
  link.send("peer", {7, wire::request_done{}});
  EXPECT_EQ(link.waiting(), held + 1);
  durable = 1;
  link.committed();
  EXPECT_EQ(to->sent, held + 1);
  link.send("peer", {0, large});
  EXPECT_EQ(to->sent, held + 2) << "there is room again";
}

TEST_F(scheduler_journal_test, takes_no_batch_that_it_could_not_write_down) {
  worker_log w;
  start();
  join(spawn(reckoner, &w, plain_hello()));
  settle();
  auto first = sample();
  ask(first);
  settle();
  health = {false, "the disk is full", 0, 0};
  auto second = sample();
  second.batch_key = "c";
  ask(second);
  ask(first);
  settle();
  commit();
  settle();
  commit();
  EXPECT_EQ(controller->failures, std::vector{errc::queue_full});
  EXPECT_TRUE(controller->done) << "what runs goes on";
}

TEST_F(scheduler_journal_test, keeps_identity_and_epoch_and_numbers_itself_anew) {
  worker_log w;
  worker_log other;
  start();
  auto hello = plain_hello();
  hello.weight_epoch = 5;
  const auto worker = spawn(reckoner, &w, hello);
  join(worker);
  settle();
  const auto before = w.id;
  log.write(journal::epoch_promised{7});
  commit();
  kill();
  start();
  settle();
  auto stale = plain_hello(); // the checkpoint that all were started from
  stale.weights_hash = {9, 9};
  join(spawn(reckoner, &other, stale));
  settle();
  EXPECT_EQ(other.refused, errc::ok);
  EXPECT_FALSE(other.admitted) << "the first worker does not decide any more";
  EXPECT_GT(other.id.value, before.value);
  join(worker);
  settle();
  EXPECT_TRUE(w.admitted);
  auto alien = plain_hello();
  alien.numerics_hash = {4, 4};
  worker_log refused;
  join(spawn(reckoner, &refused, alien));
  settle();
  EXPECT_EQ(refused.refused, errc::numerics_mismatch);
  ask(wire::get_status{});
  settle();
  const auto& status = std::get<wire::status_report>(controller->all.back());
  EXPECT_EQ(status.weight_version, 5u);
  EXPECT_EQ(status.weights.epoch, 5u);
}

TEST_F(scheduler_journal_test, believes_no_late_word_about_chunks_of_the_scheduler_before) {
  worker_log w;
  start();
  const auto worker = spawn(reckoner, &w, plain_hello());
  join(worker);
  ask(sample());
  w.mute = true;
  settle();
  commit();
  const auto old = w.id;
  ASSERT_GT(w.chunks, 0u);
  kill();
  start();
  join(worker);
  settle();
  chunk_assignment a;
  a.worker = old;
  a.response = {1};
  a.attempt = 1;
  a.generate_max = 3;
  self->send(sut, atom::report_v, reckon(a, 0));
  settle();
  ask(wire::get_status{});
  settle();
  EXPECT_EQ(std::get<wire::status_report>(controller->all.back()).batches[0].generated_tokens, 0u);
}

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

TEST_F(flip_test, weights_that_nobody_has_any_more_end_the_batches_that_wait_for_them) {
  prepare();
  ask(sample());
  settle();
  durable = log.all.size();
  kill();
  start(); // without the tensors; its worker has those of before
  ask(wire::resume_results{"b", controller->last});
  for (int i = 0; i < 400; ++i)
    pass(1s);
  EXPECT_TRUE(controller->failures.empty()) << "a worker that has them may come yet";
  join(worker);
  settle();
  weight_news others; // it is asked, and all it has are those of before
  others.worker = log_of.id;
  others.update = log_of.prepared.back();
  others.kind = static_cast<std::uint8_t>(weight_news_kind::prepared);
  others.hash = plain_hello().weights_hash;
  self->send(sut, atom::weights_v, others);
  for (int i = 0; i < 200; ++i)
    pass(1s);
  commit();
  settle();
  EXPECT_FALSE(log_of.admitted);
  EXPECT_TRUE(controller->failures.empty()) << "and the controller may publish";
  for (int i = 0; i < 200; ++i)
    pass(1s);
  commit();
  settle();
  EXPECT_EQ(controller->failures, std::vector{errc::stale_epoch});
}

} // namespace
} // namespace rollcast::test
